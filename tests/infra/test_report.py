"""`clara report`: the rule on cases worked by hand, and the command on the small world of the evaluation's tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from clara.data.records import input_text
from clara.errors import InputError
from clara.intervals import PairedTest
from clara.retrieval.retriever import Retriever
from infra.report import advice, command
from infra.report.measure import (
    INDEX_VECTORS,
    INDEX_WORDS,
    MEMORY_RECORDS,
    MEMORY_VECTORS,
    RAW_TEXT,
    parts_of,
    rankers_of,
    raw_text_bytes,
    sizes,
)
from infra.report.ways import ways_of
from tests.helpers import embedding_model
from tests.helpers.artefacts import verify
from tests.helpers.evaluation_world import World

# --- the rule ---


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.1, 0.3, 0.01, advice.BETTER),
        (-0.3, -0.1, 0.01, advice.WORSE),
        (-0.1, 0.3, 0.01, advice.UNDECIDED),
        (0.0, 0.3, 0.01, advice.UNDECIDED),
        (0.1, 0.3, 0.06, advice.UNDECIDED),  # few questions that all agree have a narrow interval
    ],
)
def test_a_difference_is_decided_where_its_interval_excludes_0_and_chance_is_excluded(
    low: float, high: float, p: float, word: str
) -> None:
    assert advice.verdict(PairedTest((low + high) / 2, low, high, p, 50)) == word


def values(numbers: Sequence[float]) -> dict[str, float]:
    return {f"q{i}": v for i, v in enumerate(numbers)}


TARGETS = {f"q{i}": i for i in range(20)}
ALIKE = values([1.0, 0.0] * 10)
RIGHT, WRONG = values([1.0] * 20), values([0.0] * 20)


def test_the_better_one_is_recommended_whatever_it_costs() -> None:
    seconds = {"good": [9.0, 11.0], "bad": [1.0, 1.0]}
    found = advice.recommend({"bad": WRONG, "good": RIGHT}, TARGETS, seconds, {"good": 100, "bad": 1})
    assert (found.choice, found.best, list(found.worse), found.undecided) == ("good", "good", ["bad"], {})
    assert found.worse["bad"].difference == 1.0


def test_of_undecided_ones_the_fastest_is_recommended_and_of_equally_fast_ones_the_smallest() -> None:
    same = {"a": ALIKE, "b": ALIKE, "c": ALIKE}
    seconds = {"a": [2.0, 2.1, 2.2], "b": [1.0, 1.2, 1.1], "c": [1.1, 1.1, 1.1]}
    found = advice.recommend(same, TARGETS, seconds, {"a": 1, "b": 3, "c": 2})
    assert found.choice == "c"
    assert (found.best, list(found.undecided), list(found.slower)) == ("a", ["b", "c"], ["a"])
    assert found.num_questions == {"b": 0, "c": 0}  # no difference that more questions could show
    said = advice.reasons(found, {name: name.upper() for name in same}, "F1", 3)
    assert said[0] == "F1: A has the highest mean."
    assert "Undecided against B (+0.000 [+0.000, +0.000], 20 questions)." in said
    assert said[-1] == "C needs the fewest bytes of what is left (also B)."


def test_how_many_questions_would_decide() -> None:
    # The half-width falls with the root of the number: four times the questions for half of it.
    assert advice.questions_wanted(PairedTest(0.1, -0.1, 0.3, 0.4, 50)) == 200
    assert advice.questions_wanted(PairedTest(0.0, -0.1, 0.1, 1.0, 50)) == 0


def test_questions_of_one_document_are_no_independent_samples() -> None:
    first, second = values([1.0] * 10 + [0.0] * 10), values([0.0] * 20)
    one = advice.paired(first, second, dict.fromkeys(TARGETS, 0))
    each = advice.paired(first, second, TARGETS)
    assert one is not None
    assert each is not None
    assert one.difference == each.difference == 0.5
    assert one.p_value == 1.0
    assert each.p_value < 0.05
    assert advice.paired({"q0": 1.0}, second, TARGETS) is None


def test_a_ratio_of_times_is_that_of_each_question() -> None:
    found = advice.ratio([2.0, 8.0], [1.0, 2.0])
    assert found.value == pytest.approx(8**0.5)
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(4.0))


# --- the command ---


@pytest.fixture(scope="module")
def world(evaluation_artefacts: World) -> World:
    return evaluation_artefacts


def arguments(world: World, output: Path, *more: str) -> list[str]:
    given = {
        "questions": world.questions,
        "checkpoint": world.trained,
        "memory": world.memory,
        "index": world.index,
        "output": output,
        "num-selected": 2,
        "max-new-tokens": 3,
        "timed": 3,
    }
    return [*(part for name, value in given.items() for part in (f"--{name}", str(value))), *more]


def test_command(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, dense = tmp_path / "report", str(embedding_model.write(tmp_path / "dense"))
    asked = arguments(world, output, "--dense-model", dense)
    assert command.main(asked) == 0
    said = capsys.readouterr().out
    verify(output, "REPORT")
    verify(output / "evaluation", "EVALUATION")
    report = json.loads((output / "report.json").read_text())
    assert report["questions"] == {"count": 6, "timed": 3, "splits": {"unseen": 6}}  # not those that were trained on
    assert list(report["ways"]) == [
        *("system", "bm25/system", "dense/system"),
        *("text/bm25", "text/dense", "text/system"),
    ]

    evaluated = json.loads((output / "evaluation" / "report.json").read_text())["systems"]
    for label, way in report["ways"].items():
        for measure, figure in way["quality"].items():
            assert figure["value"] == pytest.approx(evaluated[label]["unseen"][measure]["value"])
        assert 0 < way["seconds"]["search"]["median_seconds"] < way["seconds"]["answer"]["median_seconds"]
    assert report["ways"]["text/bm25"]["tokens_read"] > report["ways"]["system"]["tokens_read"]
    # The tiny checkpoint finds little, and six questions decide only what all of them agree on.
    assert report["differences"]["bm25/system"]["index.recall@5"]["difference"] < 0
    assert {d["verdict"] for of in report["differences"].values() for d in of.values()} <= {
        *(advice.BETTER, advice.WORSE, advice.UNDECIDED)
    }
    assert report["recommendation"]["choice"] in report["ways"]

    text, page = (output / "report.txt").read_text(), (output / "report.html").read_text()
    for part in (report["recommendation"]["title"], "standard RAG, BM25", *report["recommendation"]["reasons"]):
        assert part in text
    assert "<h2>Recommendation</h2>" in page
    assert "standard RAG, BM25" in page
    assert "http" not in page
    assert text in said
    assert len(text.splitlines()) <= 60
    # Vectors of 16 numbers for each of 80 rows, computed now as the INDEX has none.
    assert report["bytes"]["INDEX, dense vectors"] == 80 * 16 * 4

    written = (output / "report.json").stat().st_mtime_ns
    assert command.main(asked) == 0
    again = capsys.readouterr().out
    assert text in again
    assert "up to date" in again
    assert (output / "report.json").stat().st_mtime_ns == written


def test_bytes_are_those_of_the_files_and_of_the_texts(world: World) -> None:
    retriever = Retriever.open(world.checkpoint, world.memory, world.index)
    store = retriever.store
    rankers = rankers_of(retriever, ["bm25"], None)
    found = sizes(retriever, rankers)
    # Title and text without the line break that `input_text` puts between them.
    texts = [input_text(c.title, c.text).replace("\n", "", 1) for c in store.records(store.row_ids)]
    assert found[RAW_TEXT] == raw_text_bytes(store) == sum(len(text.encode()) for text in texts)
    on_disk = {path: path.stat().st_size for path in (*world.memory.rglob("*"), *world.index.rglob("*"))}
    assert found[MEMORY_VECTORS] == sum(n for path, n in on_disk.items() if path.name == "memory.safetensors")
    assert found[MEMORY_RECORDS] == sum(n for path, n in on_disk.items() if path.name == "records.parquet")
    assert found[INDEX_VECTORS] > 0
    assert found[INDEX_WORDS] == sum(n for path, n in on_disk.items() if path.parent.name == "words")
    without = Retriever.open(world.checkpoint, world.memory)
    in_ram = sizes(without, rankers_of(without, ["bm25"], None))
    assert 0 < in_ram[INDEX_WORDS] < found[INDEX_WORDS]  # on disk there is the vocabulary too
    assert INDEX_VECTORS not in in_ram
    needed = {label: parts_of(way, retriever) for label, way in ways_of(dense=False).items()}
    assert needed["system"] == {MEMORY_VECTORS, INDEX_VECTORS}
    assert needed["text/bm25"] == {RAW_TEXT, INDEX_WORDS}
    assert needed["text/system"] == {RAW_TEXT, MEMORY_VECTORS, INDEX_VECTORS}


def test_a_dry_run_measures_nothing(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments(world, tmp_path / "report", "--dry-run", "--splits", "all")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["number of questions"] == {"unseen": 6, "seen": 6}
    assert shown["evaluation"]["settings"]["baselines"] == ["bm25", "text"]
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--timed", "1"], "--timed 1: expected 2 or more"),
        (["--splits", "other"], "no question with split 'other'"),
        (["--limit", "1"], "1 chosen; expected 2 or more"),
        (["--memory", "nowhere"], "nowhere: no manifest.json"),
        (["--num-selected", "999"], "its MEMORY holds 80 rows; lower --num-selected"),
        (["--dense-model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_in_a_line(world: World, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        command.main(arguments(world, tmp_path / "report", *more))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
