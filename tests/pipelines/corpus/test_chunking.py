"""Chunks: nothing lost, nothing too long, cut at sentences where there is one; the real tokenizer on hostile text."""

import itertools
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara.data.records import Document, chunk_id, input_text, normalise
from clara.errors import InputError
from clara.model.model import ClaraModel
from pipelines.corpus.chunking import ChunkingError, Tokens, check_limits, chunk_document
from pipelines.corpus.chunks import checkpoint_tokens
from tests.helpers.fuzz import examples

WORDS = st.text(alphabet="abc déß中文🙂é<|im_end|>.。!?\"' ", max_size=400)


def words(text: str) -> list[tuple[int, int]]:
    spans, place = [], 0
    for word in text.split(" "):
        if word:
            spans.append((place, place + len(word)))
        place += len(word) + 1
    return spans


BY_WORD = Tokens(words, lambda text: len(text.split()))


@pytest.fixture(scope="module")
def tokens(tiny_checkpoint: Path) -> Tokens:
    return checkpoint_tokens(str(tiny_checkpoint))


def document(text: str, title: str = "") -> Document:
    return Document("d", title, text, "corpus.jsonl", 3)


def test_sentences_are_kept_whole_and_spans_point_at_the_text() -> None:
    text = "One two three. Four five six seven. Eight nine. Ten eleven twelve thirteen fourteen fifteen."
    chunks = chunk_document(document(text), BY_WORD, max_tokens=8, overlap_tokens=0)
    assert [c.text for c in chunks] == [
        "One two three. Four five six seven.",
        "Eight nine. Ten eleven twelve thirteen fourteen fifteen.",
    ]
    assert [text[c.start : c.end] for c in chunks] == [c.text for c in chunks]
    assert [c.num_tokens for c in chunks] == [7, 8]
    assert not any(c.truncated for c in chunks)
    assert chunks[0].chunk_id == chunk_id("", chunks[0].text)


def test_a_sentence_longer_than_a_chunk_is_cut_between_words_and_marked() -> None:
    chunks = chunk_document(document("a b c d e f g h i j. K l."), BY_WORD, max_tokens=4, overlap_tokens=0)
    assert [(c.text, c.truncated) for c in chunks] == [("a b c d", True), ("e f g h", True), ("i j. K l.", False)]


def test_overlap_repeats_sentences_else_words() -> None:
    chunks = chunk_document(document("a b. c d. e f. g h. i j."), BY_WORD, max_tokens=6, overlap_tokens=2)
    assert [c.text for c in chunks] == ["a b. c d. e f.", "e f. g h. i j."]
    chunks = chunk_document(document("a b c d e f g h"), BY_WORD, max_tokens=4, overlap_tokens=1)
    assert [c.text for c in chunks] == ["a b c d", "d e f g", "g h"]


def test_the_title_precedes_each_chunk_and_counts() -> None:
    chunks = chunk_document(document("a b c. d e f.", "The Title"), BY_WORD, max_tokens=5, overlap_tokens=0)
    assert [(c.title, c.text, c.num_tokens) for c in chunks] == [("The Title", "a b c.", 5), ("The Title", "d e f.", 5)]


def test_a_title_that_leaves_no_room_is_cut_and_marked() -> None:
    chunks = chunk_document(document("a b c.", "one two three four five six"), BY_WORD, max_tokens=6, overlap_tokens=0)
    assert [(c.title, c.truncated) for c in chunks] == [("one two three", True)]


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "message"), [(15, 0, "at least 16"), (32, 17, "0 to 16"), (32, -1, "0 to 16")]
)
def test_limits_under_which_chunks_cannot_advance_are_refused(max_tokens: int, overlap: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_limits(max_tokens, overlap)


def test_a_text_without_tokens_is_reported() -> None:
    with pytest.raises(ChunkingError, match="no token"):
        chunk_document(document("\ue000 "), Tokens(words, lambda text: len(text.replace("\ue000", "").split())), 16, 0)


@given(text=WORDS, title=WORDS, max_tokens=st.integers(16, 40), overlap=st.integers(0, 8))
@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_lost_and_nothing_too_long(
    tokens: Tokens, text: str, title: str, max_tokens: int, overlap: int
) -> None:
    text, title = normalise(text), normalise(title)
    if not text:
        return
    chunks = chunk_document(document(text, title), tokens, max_tokens, overlap)
    covered: set[int] = set()
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.end] == normalise(chunk.text)
        assert 0 < chunk.num_tokens == tokens.count(input_text(chunk.title, chunk.text)) <= max_tokens
        assert chunk.truncated or chunk.title == title
        covered.update(range(chunk.start, chunk.end))
    assert all(text[place].isspace() for place in set(range(len(text))) - covered)
    assert [c.start for c in chunks] == sorted({c.start for c in chunks})
    if not overlap:
        assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))
    assert chunks == chunk_document(document(text, title), tokens, max_tokens, overlap)


@given(
    st.text(alphabet=st.characters(), max_size=60)
    | st.text(alphabet="a é\u0301\u2003\u200b\u0085\x1c\x07\t\n\r", max_size=30)
)
def test_normalising_is_the_plain_formula(text: str) -> None:
    without_control = re.sub(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]", "", unicodedata.normalize("NFC", text))
    wanted = unicodedata.normalize("NFC", re.sub(r"\s+", " ", without_control)).strip()
    assert normalise(text) == wanted == normalise(wanted)


def test_counts_are_the_models(tokens: Tokens, tiny_model: ClaraModel) -> None:
    for text in ("Arlen on the Tamo is a town.", "say <|im_end|> and <|im_start|>now<MEM0>", "é🙂中"):
        assert tokens.count(text) == len(tiny_model.document_ids(text))


def test_special_tokens_in_a_text_stay_text(tokens: Tokens, tiny_model: ClaraModel) -> None:
    chunk = chunk_document(document("before <|im_end|><|im_start|> after <MEM0>."), tokens, 64, 0)[0]
    assert chunk.text == "before <|im_end|><|im_start|> after <MEM0>."
    specials = set(tiny_model.tokenizer.all_special_ids)
    assert not specials & set(tiny_model.document_ids(input_text(chunk.title, chunk.text)))


def test_two_megabytes_are_many_chunks(tokens: Tokens) -> None:
    text = normalise("The bridge over the Tamo was built in 1700. " * 46_000)
    assert len(text) > 2_000_000
    chunks = chunk_document(document(text), tokens, 96, 0)
    assert max(c.num_tokens for c in chunks) <= 96
    assert sum(c.text.count("bridge") for c in chunks) == 46_000
    assert not any(c.truncated for c in chunks)


def test_threads_that_share_a_tokenizer_count_alike(tokens: Tokens) -> None:
    texts = [f"The market sells bread, salt and {number} kinds of wool." for number in range(40)]
    expected = [(tokens.count(text), tokens.offsets(text)) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            counts, offsets = pool.map(tokens.count, texts), pool.map(tokens.offsets, texts)
            assert list(zip(counts, offsets, strict=True)) == expected


def test_a_document_that_fits_is_one_chunk_and_is_read_by_the_tokenizer_once(tokens: Tokens) -> None:
    texts: list[str] = []

    def count(text: str) -> int:
        texts.append(text)
        return tokens.count(text)

    def offsets(text: str) -> list[tuple[int, int]]:
        raise AssertionError("the text fits, so that nothing is to be cut")

    (chunk,) = chunk_document(document("The bridge was built. It lasted.", "Tamo"), Tokens(offsets, count), 64, 8)
    assert (chunk.text, chunk.truncated) == ("The bridge was built. It lasted.", False)
    assert texts == ["Tamo", "Tamo\nThe bridge was built. It lasted."]
