"""Near duplicates: signatures against datasketch and true similarity, order, and the job with any workers."""

import json
import random
from pathlib import Path

import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.manifest import read_manifest
from pipelines.build_memory.command import main
from pipelines.corpus.near_duplicates import duplicates, make_min_hash_settings, shingles, signature, similarity
from tests.helpers.fuzz import examples

RNG = random.Random(0)
WORDS = [f"word{n}" for n in range(400)]
BASE = [" ".join(RNG.choices(WORDS, k=60)) for _ in range(6)]


def edited(text: str, num_edits: int, seed: int) -> str:
    words, rng = text.split(), random.Random(seed)
    for _ in range(num_edits):
        words[rng.randrange(len(words))] = f"edit{rng.randrange(99)}"
    return " ".join(words)


def jaccard(first: str, second: str) -> float:
    return len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))


def test_shingles() -> None:
    assert shingles("A b, c d. E f!") == {b"a b c d e", b"b c d e f"}
    assert shingles("Two words") == {b"two words"}
    assert shingles("Ein Wort, noch EINS; ab 3 wörter_hier") == {
        b"ein wort noch eins ab",
        b"wort noch eins ab 3",
        b"noch eins ab 3 w\xc3\xb6rter_hier",
    }


def test_texts_without_words_are_alike_only_where_they_are_equal() -> None:
    texts = ["∑ ∞ ≠ ☃", "😀😀 → !!", "...", "…", "?!"]
    assert len({frozenset(shingles(text)) for text in texts}) == len(texts)
    assert shingles("∑  ∞\n≠ ☃ ") == shingles(texts[0])
    bucket = [(("corpus", n), signature(text)) for n, text in enumerate([*texts, "∑ ∞\t≠ ☃"])]
    assert list(duplicates(bucket, 0.5)) == [(("corpus", 5), ("corpus", 0))]


@pytest.mark.parametrize(
    "text",
    [
        "東京は日本の首都であり、人口は約千四百万人である。古くは江戸と呼ばれ、徳川家康が幕府を開いた町として知られている。",
        "北京是中华人民共和国的首都，也是全国的政治、文化和国际交往中心，有着三千多年的建城历史和八百多年的建都历史。",
        "กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทยเป็นศูนย์กลางการปกครองการศึกษาและการคมนาคม",
        "ភ្នំពេញគឺជារាជធានីនិងជាទីក្រុងធំបំផុតរបស់ប្រទេសកម្ពុជាស្ថិតនៅលើច្រាំងទន្លេសាបនិងទន្លេមេគង្គ",
        "ວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວຕັ້ງຢູ່ແຄມແມ່ນ້ຳຂອງແລະເປັນສູນກາງທາງເສດຖະກິດແລະວັດທະນະທຳຂອງປະເທດ",
        "ရန်ကုန်မြို့သည်မြန်မာနိုင်ငံ၏အကြီးဆုံးမြို့ဖြစ်ပြီးယခင်ကမြို့တော်ဖြစ်ခဲ့သည်စီးပွားရေးအချက်အချာကျသောမြို့ဖြစ်သည်",
    ],
)
def test_in_scripts_without_spaces_characters_are_words(text: str) -> None:
    assert jaccard(text, text[:-1] + "X") > 0.9
    middle = len(text) // 2
    assert jaccard(text, text[:middle] + text[middle + 1 :]) > 0.7
    assert jaccard(text, text[::-1]) < 0.1


def test_words_and_characters_in_one_text() -> None:
    assert shingles("Das 東京Haus steht") == {"das 東 京 haus steht".encode()}
    assert shingles("東京") == {"東 京".encode()}
    assert shingles("गीता की पोथी") == {"गीता की पोथी".encode()}  # a word keeps its vowel signs


@given(st.integers(0, 5), st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=examples(40), deadline=None)
def test_similarity_estimates_jaccard(number: int, num_edits: int, seed: int) -> None:
    text = edited(BASE[number], num_edits, seed)
    # 128 hashes: a standard deviation of at most 0.045; five of them.
    assert abs(similarity(signature(BASE[number]), signature(text)) - jaccard(BASE[number], text)) < 0.22


def test_a_signature_is_datasketchs() -> None:
    sketch = MinHash(num_perm=128, seed=1, scheme="affine32")
    for shingle in shingles(BASE[0]):
        sketch.update(shingle)
    assert signature(BASE[0]).tolist() == sketch.hashvalues.tolist()


@given(st.permutations(range(9)), st.sampled_from([0.5, 0.8, 1.0]))
@settings(max_examples=examples(30), deadline=None)
def test_in_any_order_a_bucket_drops_the_later_ones(order: list[int], threshold: float) -> None:
    texts = [
        BASE[0],
        BASE[1],
        BASE[0],
        edited(BASE[1], 1, 0),
        edited(BASE[1], 9, 1),
        BASE[2],
        BASE[2],
        edited(BASE[0], 30, 2),
        BASE[1],
    ]
    bucket = [(("corpus", n), signature(text)) for n, text in enumerate(texts)]
    found = dict(duplicates([bucket[n] for n in order], threshold))
    standing: list[int] = []
    for n in range(len(texts)):  # the rule, by every pair
        like = [m for m in standing if similarity(bucket[n][1], bucket[m][1]) >= threshold]
        assert found.get(("corpus", n)) == (("corpus", like[0]) if like else None)
        if not like:
            standing.append(n)


def test_bands_find_what_is_alike() -> None:
    assert make_min_hash_settings(0) is None
    for threshold in (0.5, 0.8, 0.95):
        min_hash = make_min_hash_settings(threshold)
        assert min_hash is not None
        assert min_hash.num_bands * min_hash.band_size <= 128
        for alike, found in ((threshold, 0.8), ((1 + threshold) / 2, 0.97)):
            assert 1 - (1 - alike**min_hash.band_size) ** min_hash.num_bands > found
    for bad in (-0.1, 0.96):
        with pytest.raises(InputError, match=f"--near-duplicates {bad}: expected a similarity"):
            make_min_hash_settings(bad)


def build(checkpoint: Path, corpus: Path, output: Path, *arguments: str) -> MemoryStore:
    given = [
        "--input",
        str(corpus / "*.jsonl"),
        "--output",
        str(output),
        "--checkpoint",
        str(checkpoint),
        "--max-tokens=512",
        "--num-shards=2",
    ]
    assert main([*given, "--near-duplicates=0.7", *arguments]) == 0
    return MemoryStore.open(output)


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    alike = [{"id": f"{n}-like", "text": edited(BASE[n], 1, n)} for n in range(3)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alike))
    base = [{"id": f"{n}", "text": text} for n, text in enumerate(BASE)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in base))
    return folder


def test_the_job_keeps_the_first_of_alike_documents_and_reports_the_others(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    store = build(
        tiny_checkpoint, corpus, tmp_path / "memory", "--runner=FnApiRunner", "--direct_runner_bundle_repeat=1"
    )
    assert sorted(set(store.document_ids)) == [str(n) for n in range(6)]
    counts = read_manifest(tmp_path / "memory")["counts"]
    assert (counts["records read"], counts["documents"], counts["dropped by reason"]) == (9, 6, {"near duplicate": 3})
    letters = [json.loads(line) for line in (tmp_path / "memory" / "dead_letters.jsonl").read_text().splitlines()]
    assert [(x["line"], x["detail"], x["dropped"]) for x in letters] == [
        (n + 1, f"of {corpus}/a.jsonl:{n + 1}", True) for n in range(3)
    ]


@pytest.mark.slow
def test_workers_change_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    one = build(tiny_checkpoint, corpus, tmp_path / "one", "--num-workers=1")
    two = build(tiny_checkpoint, corpus, tmp_path / "two", "--num-workers=2")
    assert one.hash == two.hash
