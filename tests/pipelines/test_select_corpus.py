"""select_corpus, corpus files and the embedded corpus."""

import bz2
import gzip
import importlib.util
import itertools
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.data.input_files import expand, input_hashes
from clara.data.records import Document, document_id
from clara.errors import InputError
from pipelines.build_examples import Settings, corpus_examples
from pipelines.corpus.bridges import ClozeSettings, cloze_questions
from pipelines.corpus.mentions import MASK, sentences
from pipelines.corpus.whole import read_corpus
from pipelines.select_corpus import densest, main, select
from pipelines.wiki_corpus import PACKAGE, corpus_row
from pipelines.wiki_corpus import main as wiki_main
from tests.helpers import towns


def test_a_clique_survives_its_surroundings() -> None:
    clique, chain = ["a", "b", "c", "d"], [f"x{n}" for n in range(20)]
    edges = [*itertools.permutations(clique, 2), *itertools.pairwise(chain)]
    assert densest(edges, clique + chain, 4, cap=3) == set(clique)


def test_more_mentions_of_one_target_than_the_limit_are_worth_nothing() -> None:
    # Twenty articles that mention only the hub give 2 questions; the four of the ring give 4.
    hub = [(f"s{n}", "hub") for n in range(20)]
    ring = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")]
    nodes = sorted({name for edge in hub + ring for name in edge})
    assert {"a", "b", "c", "d"} <= densest(hub + ring, nodes, 6, cap=2)


def questions_of(kept: set[str], edges: list[tuple[str, str]], cap: int) -> int:
    return sum(min(cap, sum(s in kept and t == target for s, t in edges)) for target in kept)


def test_dense_choices_beat_random_ones_and_do_not_depend_on_order() -> None:
    rng = random.Random(0)
    nodes = [f"n{i}" for i in range(60)]
    edges = [
        (a, b)
        for a, b in ((rng.choice(nodes), nodes[min(59, int(rng.expovariate(0.1)))]) for _ in range(250))
        if a != b
    ]
    kept = densest(edges, nodes, 20, cap=3)
    at_random = [questions_of(set(rng.sample(nodes, 20)), edges, 3) for _ in range(200)]
    assert questions_of(kept, edges, 3) > max(at_random)
    rng.shuffle(edges)
    assert densest(edges, sorted(nodes, reverse=True), 20, cap=3) == kept


def test_selection_keeps_the_corpus_order_and_gives_questions() -> None:
    corpus = towns.documents() + [
        Document(f"lone-{n}", f"Lonely Place {n}", "It has no neighbours.") for n in range(40)
    ]
    chosen = select(corpus, 30)
    assert [d.id for d in corpus if d in chosen] == [d.id for d in chosen]
    assert not any(d.id.startswith("lone") for d in chosen)
    assert len(cloze_questions(chosen, ClozeSettings())[0]) > 20
    with pytest.raises(InputError, match="the corpus has 75"):
        select(corpus, 76)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, output = towns.write(tmp_path / "corpus.jsonl"), tmp_path / "small.jsonl"
    arguments = ["--input", str(corpus), "--output", str(output), "--documents", "20"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not output.exists()
    assert main(arguments) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 20
    assert all(row["description"] == f"About {row['title']}" for row in rows)
    assert "20 of 35 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a"}', "nonsense"], ":2: 'nonsense"),
        (['{"text": "a"}', "[1]"], ":2: .*expected a JSON object"),
        (['{"title": "a"}'], ":1: no `text`"),
        (['{"text": 3}'], ":1: text is 3"),
        (['{"id": "x", "text": "a"}', '{"id": "x", "text": "b"}'], ":2: id 'x' is at .*:1 with other content"),
        ([""], "no document"),
        (['{"text": "\\ud800"}'], ":1: .*not JSON in UTF-8"),
    ],
)
def test_bad_corpora_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_corpus([str(tmp_path / "c.jsonl")])


def test_without_an_id_the_contents_hash_is_taken_and_repetitions_are_one(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"title": "T", "text": " a  b "}\n\n{"title": "T", "text": "a b"}\n', encoding="utf-8"
    )
    (document,) = read_corpus([str(tmp_path / "c.jsonl")])
    assert (document.id, document.text, document.line) == (document_id("T", "a b"), "a b", 1)


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes('{"text": "é"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r":1: .*not JSON in UTF-8"):
        read_corpus([str(tmp_path / "c.jsonl")])


def test_ids_may_be_numbers_and_titles_missing(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"id": 0, "title": null, "text": "a"}\n{"id": null, "text": "b"}\n', encoding="utf-8"
    )
    assert [(d.id, d.title) for d in read_corpus([str(tmp_path / "c.jsonl")])] == [
        ("0", ""),
        (document_id("", "b"), ""),
    ]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.bz2", "c.jsonl.xz", "c.json", "c.parquet", "c[1].txt"])
def test_a_corpus_is_read_from_all_that_build_memory_reads(tmp_path: Path, name: str) -> None:
    rows = [{"id": "1", "title": "", "text": "One é."}, {"id": "2", "title": "T", "text": "Two."}]
    file = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif name.endswith("txt"):
        file.write_text("\ufeffOne é.\n", encoding="utf-8")
    elif name.endswith("json"):
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[name.rpartition(".")[2]]
        file.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = read_corpus(expand([str(file)]))
    expected = [("One é.", ""), ("Two.", "T")] if not name.endswith("txt") else [("One é.", "")]
    assert [(d.text, d.title) for d in found] == expected
    if name != "c[1].txt":
        assert [d.id for d in found] == ["1", "2"]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl.gz", "c.json", "c.txt"])
def test_a_damaged_file_of_any_kind_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1[\xff\xfe")
    with pytest.raises(InputError, match=rf"{name}.*(cannot be read|not JSON|not text)"):
        read_corpus([str(tmp_path / name)])


def test_files_of_one_name_in_different_folders_are_distinguished(tmp_path: Path) -> None:
    """Else a changed one would not be missed."""
    files = [str(tmp_path / name / "part.jsonl") for name in "ab"]
    for file in files:
        Path(file).parent.mkdir()
        Path(file).write_text('{"text": "a"}\n', encoding="utf-8")
    before = input_hashes(files)
    Path(files[0]).write_text('{"text": "b"}\n', encoding="utf-8")
    assert input_hashes(files) != before
    assert list(input_hashes(files[:1])) == ["part.jsonl"]  # in any folder


def test_an_article_as_a_row() -> None:
    row = corpus_row({"title": "Arlen", "extract": "Arlen\xa0is\na town.", "description": "Town", "topic": ""})
    assert row == {
        "id": document_id("Arlen", "Arlen is a town."),
        "title": "Arlen",
        "text": "Arlen is a town.",
        "description": "Town",
        "topic": "",
    }


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_the_embedded_corpus(tmp_path: Path) -> None:
    output = tmp_path / "corpus.jsonl"
    assert wiki_main(["--output", str(output), "--dry-run"]) == 0
    assert not output.exists()
    assert wiki_main(["--output", str(output)]) == 0
    corpus = read_corpus([str(output)])
    assert len(corpus) == 10_033
    chosen = select(corpus, 1000)
    questions, _ = cloze_questions(chosen, ClozeSettings())
    assert sum(q.split == "train" for q in questions) > 1500
    # A part may find a name where the whole finds a longer one; what both ask has the same split.
    whole = {q.question_id: q.split for q in cloze_questions(corpus, ClozeSettings(max_per_target=10**6))[0]}
    common = [q for q in questions if q.question_id in whole]
    assert len(common) > 0.95 * len(questions)
    assert all(whole[q.question_id] == q.split for q in common)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_examples_of_the_embedded_corpus_give_away_no_question_of_a_part(tmp_path: Path) -> None:
    assert wiki_main(["--output", str(tmp_path / "corpus.jsonl")]) == 0
    corpus = read_corpus([str(tmp_path / "corpus.jsonl")])
    examples, _ = corpus_examples([(d, "") for d in corpus], Settings(held_out_share=0.1))
    read = {sentence for e in examples for sentence in sentences(e.text)}
    for part in (corpus, corpus[::3]):
        questions = [q for q in cloze_questions(part, ClozeSettings())[0] if q.split in ("seen", "unseen")]
        assert len(questions) > 100
        assert not [q for q in questions if q.question.replace(MASK, q.answers[0]) in read]
        assert not {q.positive_ids[0] for q in questions if q.split == "unseen"} & {e.document_id for e in examples}
