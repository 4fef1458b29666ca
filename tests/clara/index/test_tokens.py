"""Words of a text: bm25s' own in scripts with spaces, pairs of characters in the others."""

import bm25s
import pytest

from clara.index.tokens import words_of

LATIN = [
    "Lagos is the largest city of Nigeria; a 2nd of 3 ports.",
    "Ünïcode wörds — naïve café, don't, e-mail, snake_case, x",
    "Достоевский написал «Идиота»; Ελληνικά, עברית، العربية",
    "한국어는 띄어쓰기가 있다",
    "",
    "... ! ?",
]


@pytest.mark.parametrize("text", LATIN)
def test_where_words_have_spaces_they_are_those_of_bm25s(text: str) -> None:
    [expected] = bm25s.tokenize([text], stopwords="english", return_ids=False, show_progress=False)
    assert words_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("東京都庁", ["東京", "京都", "都庁"]),
        ("猫", ["猫"]),
        ("猫、犬。", ["猫", "犬"]),
        ("使用Python编程的第2版", ["python", "使用", "编程", "程的", "的第", "版"]),
        ("ドン・キホーテ", ["ドン", "キホ", "ホー", "ーテ"]),
        ("กำลัง เดิน", ["กำ", "ำล", "ลั", "ัง", "เด", "ดิ", "ิน"]),
        ("မြန်မာ။", ["မြ", "ြန", "န်", "်မ", "မာ"]),
    ],
)
def test_without_spaces_each_pair_of_characters_is_a_word(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("गीता की पोथी में नीति है।", ["गीता", "की", "पोथी", "में", "नीति", "है"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("བོད་ཡིག", ["བོད", "ཡིག"]),
        ("n\u0308aive", ["n\u0308aive"]),
    ],
)
def test_a_word_keeps_the_signs_of_its_letters(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected


@pytest.mark.parametrize(
    ("written", "other"),
    [
        ("ශ්\u200dරී ලංකාව", "ශ්රී ලංකාව"),  # a joiner beside a sign
        ("כְּתָב הַיָּד", "כתב היד"),  # points
        ("كِتَابٌ", "كتاب"),
        ("كتـــاب", "كتاب"),
        ("葛\U000e0100城", "葛城"),  # which glyph
    ],
)
def test_spellings_of_a_word_are_one(written: str, other: str) -> None:
    assert words_of(written) == words_of(other) != []


def test_a_joiner_between_letters_parts_words_as_a_space_does() -> None:
    assert words_of("می\u200cخواهم") == words_of("می خواهم")


def test_further_scripts_without_spaces_are_read_in_pairs() -> None:
    assert words_of("ꦲꦏ꧀ꦱꦫ꧉") == ["ꦲꦏ", "ꦏ꧀", "꧀ꦱ", "ꦱꦫ"]
