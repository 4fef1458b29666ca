"""Evaluation: readings against the model itself, finders and pools, figures worked by hand, and the command."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clara.data.questions import Question, read_questions
from clara.errors import InputError
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import manifest_hash, read_manifest
from tests.helpers.artefacts import verify
from tests.helpers.evaluation_world import World
from training import evaluate
from training.evaluation.pairs import ReadingCaches
from training.evaluation.readers import MemoryReader, Reading, ReadingCache


@pytest.fixture(scope="module")
def world(evaluation_artefacts: World) -> World:
    return evaluation_artefacts


@pytest.fixture(scope="module")
def retriever(world: World) -> Retriever:
    return Retriever.open(world.checkpoint, world.memory, world.index)


@pytest.fixture(scope="module")
def questions(world: World) -> list[Question]:
    return read_questions(world.questions)


def arguments(world: World, output: Path, *more: str) -> list[str]:
    common = [
        "--questions",
        str(world.questions),
        "--output",
        str(output),
        "--num-selected",
        "2",
        "--max-new-tokens",
        "3",
    ]
    return [*common, "--system", f"before={world.checkpoint},{world.memory},{world.index}", *more]


def test_retrieval_only_ranks_as_the_whole_evaluation_and_reads_nothing(world: World, tmp_path: Path) -> None:
    for name, more in (("whole", []), ("ranks", ["--retrieval-only"])):
        assert evaluate.main(arguments(world, tmp_path / name, "--generate", "0", *more)) == 0
    whole, ranks = (
        json.loads((tmp_path / name / "report.json").read_text())["systems"]["before"]["unseen"]
        for name in ("whole", "ranks")
    )
    assert ranks == {
        measure: figure
        for measure, figure in whole.items()
        if any(name in measure for name in (".recall@", ".precision@", ".mrr", ".ndcg@"))
    }
    assert {
        f"{where}.{name}@{k}"
        for where in ("index", "pool")
        for name in ("recall", "precision", "mrr")
        for k in (1, 3, 5, 20)
    } | {"index.ndcg@10", "pool.ndcg@10"} < set(ranks)
    assert sorted(f.name for f in (tmp_path / "ranks").glob("*.png")) == [
        "recall-seen.png",
        "recall-unseen.png",
    ]  # no empty pictures


def test_a_search_that_is_never_exact_is_another_plan(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*more: str) -> dict[str, object]:
        assert evaluate.main(arguments(world, tmp_path / "evaluation", "--dry-run", *more)) == 0
        return dict(json.loads(capsys.readouterr().out)["settings"])

    assert plan("--exact-rows", "0") == plan() | {"exact_rows": 0}
    assert plan("--exact-rows", "5000") == plan()


def test_command(world: World, retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "evaluation"
    both = arguments(
        world,
        output,
        "--system",
        f"after={world.trained},{world.memory}",
        "--baselines",
        "bm25,text",
        "--generate",
        "2",
    )
    assert evaluate.main(both) == 0
    shown = capsys.readouterr().out
    assert "unseen: means" in shown
    assert "bm25/after" in shown

    manifest = verify(output, "EVALUATION")
    assert set(manifest["systems"]) == {"before", "after"}
    assert manifest["systems"]["after"]["memory"] == manifest_hash(world.memory)
    report = json.loads((output / "report.json").read_text())
    assert set(report["systems"]) == {"before", "bm25/before", "text/bm25", "after", "bm25/after"}
    rows = pq.read_table(output / "per_question.parquet").to_pylist()
    assert len(rows) == 5 * 12

    # The file's rows say the same as the report, and the likelihoods are the model's.
    before = [row for row in rows if row["system"] == "before" and row["split"] == "unseen"]
    figure = report["systems"]["before"]["unseen"]["none.log_likelihood"]
    assert figure["value"] == pytest.approx(np.mean([row["none.log_likelihood"] for row in before]))
    assert figure["low"] <= figure["value"] <= figure["high"]
    nats, _ = retriever.model.answer_log_likelihood(
        [before[0]["question"]], [retriever.memories([])], [before[0]["answers"][0]]
    )
    assert before[0]["none.log_likelihood"] == pytest.approx(float(nats[0]), abs=1e-4)
    for row in rows:
        assert row["index.recall@5"] == float(row["positive_ids"][0] in row["index_documents"][:5])
        assert row["gap.right_minus_none"] == pytest.approx(row["right.log_likelihood"] - row["none.log_likelihood"])

    # BM25 finds what names the town; the generator that was trained on the answers gives them more likelihood.
    assert report["systems"]["bm25/after"]["unseen"]["index.recall@1"]["value"] == 1.0
    gain = report["differences"]["unseen"]["after - before"]["index.log_likelihood"]
    assert gain["difference"] > 0
    assert gain["p_value"] == pytest.approx(2 / 2**6)  # six questions, all of them better
    assert sum(row["index_answer"] is not None for row in rows) == 5 * 4  # two of each split
    for name in ("recall-unseen.png", "likelihood-seen.png"):
        assert (output / name).read_bytes()[:4] == b"\x89PNG"
        assert f"![{name}]({name})" in (output / "report.md").read_text()
    assert (output / "report.html").read_text().count("data:image/png;base64,") == 4

    written = (output / "manifest.json").stat().st_mtime_ns
    assert evaluate.main(both) == 0
    assert "up to date" in capsys.readouterr().out
    assert (output / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "evaluation"
    first = arguments(world, output, "--generate", "0", "--limit", "3")
    assert evaluate.main(first) == 0
    (output / "manifest.json").unlink()
    report = (output / "report.json").read_bytes()
    (output / "report.json").unlink()
    with caplog.at_level("INFO"):
        assert evaluate.main([*first, "--system", f"after={world.trained},{world.memory},{world.index}"]) == 0
    assert "system before: measured before" in caplog.text
    assert "system after: measured before" not in caplog.text
    assert evaluate.main(first) == 0  # with the first system alone again: another recipe, from the same part
    assert (output / "report.json").read_bytes() == report
    assert read_manifest(output)["counts"]["questions, split unseen"] == 3


def test_readers_of_one_generator_share_what_they_read_also_with_a_later_process(
    world: World, retriever: Retriever, tmp_path: Path
) -> None:
    same, other = Retriever.open(world.checkpoint, world.memory), Retriever.open(world.trained, world.memory)
    assert MemoryReader.identity(same) == MemoryReader.identity(retriever)
    assert MemoryReader.identity(other) != MemoryReader.identity(retriever)
    asked = [Reading("Who?", "Ada", tuple(retriever.store.row_ids.tolist()[:k])) for k in (0, 2)]
    shared = ReadingCaches(directory=tmp_path)
    reader = MemoryReader(retriever, shared.known("one"))
    likelihoods, answers = reader.likelihoods(asked), reader.answers(asked, 4)
    shared.save()
    advanced: list[int] = []
    later = MemoryReader(same, ReadingCaches(directory=tmp_path).known("one"))
    assert later.likelihoods(asked, advanced.append) == likelihoods
    assert later.answers(asked, 4, advanced.append) == answers
    assert not advanced
    later.answers(asked, 5, advanced.append)  # another length is another answer
    assert advanced
    assert ReadingCaches(directory=tmp_path).known("another") == ReadingCache()


def test_only_the_conditions_that_are_asked_for_are_read(world: World, tmp_path: Path) -> None:
    whole, some = tmp_path / "whole", tmp_path / "some"
    assert evaluate.main(arguments(world, whole, "--limit", "2", "--generate", "0")) == 0
    assert evaluate.main(arguments(world, some, "--limit", "2", "--generate", "0", "--conditions", "pool,right")) == 0
    all_figures, found = (
        json.loads((path / "report.json").read_text())["systems"]["before"]["unseen"] for path in (whole, some)
    )
    likelihoods = {name for name in found if name.endswith(".log_likelihood")}
    assert likelihoods == {"pool.log_likelihood", "right.log_likelihood"}
    for name in likelihoods:
        assert found[name]["value"] == pytest.approx(all_figures[name]["value"], abs=1e-3)


def test_limit_only_adds(world: World) -> None:
    smaller = {q.question_id for q in evaluate.chosen_questions(str(world.questions), ["unseen"], 2)}
    larger = {q.question_id for q in evaluate.chosen_questions(str(world.questions), ["unseen"], 4)}
    assert len(smaller) == 2
    assert smaller < larger
    assert len(evaluate.chosen_questions(str(world.questions), ["all"], 0)) == 12


def test_dry_run_writes_nothing(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(arguments(world, tmp_path / "evaluation", "--dry-run")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["number of questions"] == {"unseen": 6, "seen": 6}
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baselines", "bm52"], "--baselines: 'bm52' is not known; choose from bm25, dense, text"),
        (["--baselines", "dense"], "--baselines dense with --dense-model none: dense needs the folder"),
        (["--dense-model", "x"], "--baselines none with --dense-model x"),
        (["--baselines", "dense", "--dense-model", "/nowhere"], "--dense-model '/nowhere': no modules.json in it"),
        (["--alignment", "-1"], "--alignment is -1; expected 0 or more"),
        (["--alignment", "3", "--retrieval-only"], "--alignment 3 reads documents"),
        (["--system", "bm25=c,d"], "'bm25' is what a baseline is called"),
        (["--system", "nothing"], "expected NAME=CHECKPOINT,MEMORY"),
        (["--system", "a/b=c,d"], "no / in the name"),
        (["--system", "before=c,d"], "give each system its own"),
        (
            ["--splits", "hidden"],
            "no question with split 'hidden'; there are 'seen', 'unseen'; name those, "
            "or take every question with --splits all",
        ),
        (["--set", "retrieval.dense_name=a"], "retrieval.dense_name = 'a' is for an endpoint"),
        (["--num-selected", "81"], "num_selected is 81, its MEMORY holds 80 rows"),
        (["--num-selected", "0"], "--num-selected is 0; expected 1 or more"),
        (["--accept-stale", "after"], "--accept-stale 'after': no such system"),
        (["--generate-conditions", "rigth"], "'rigth' is not known"),
        (
            ["--conditions", "pool", "--generate-conditions", "right"],
            "--generate-conditions 'right' is not among --conditions pool",
        ),
    ],
)
def test_refuses(world: World, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        evaluate.main(arguments(world, tmp_path / "evaluation", *more))
    assert message in str(error.value)


def test_refuses_questions_of_another_corpus(world: World, tmp_path: Path, questions: list[Question]) -> None:
    from clara.data.questions import write_questions

    write_questions(
        tmp_path / "questions", [dataclasses.replace(q, positive_ids=("elsewhere",)) for q in questions], recipe={}
    )
    other = dataclasses.replace(world, questions=tmp_path / "questions")
    with pytest.raises(InputError, match="none of the 12 questions has a right document"):
        evaluate.main(arguments(other, tmp_path / "evaluation"))


def test_absent_positives_are_counted_and_count_as_not_found(
    world: World, tmp_path: Path, questions: list[Question]
) -> None:
    from clara.data.questions import write_questions

    changed = [
        dataclasses.replace(q, positive_ids=("elsewhere",)) if q.question_id in ("q0", "q1") else q for q in questions
    ]
    write_questions(tmp_path / "questions", changed, recipe={})
    other = dataclasses.replace(world, questions=tmp_path / "questions")
    assert (
        evaluate.main(
            arguments(other, tmp_path / "evaluation", "--generate", "0", "--splits", "unseen", "--baselines", "bm25")
        )
        == 0
    )
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["counts"]["before: questions whose positives are not in MEMORY"] == 2
    lexical = report["systems"]["bm25/before"]["unseen"]
    assert lexical["index.recall@20"]["value"] == pytest.approx(4 / 6)
    assert lexical["right.log_likelihood"]["num_questions"] == 4
    assert math.isfinite(lexical["none.log_likelihood"]["value"])


def test_refuses_a_place_that_cannot_be_written_and_a_damaged_memory(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/evaluation: cannot be written"):
        evaluate.main(arguments(world, tmp_path / "file" / "evaluation"))
    memory = tmp_path / "memory"
    shutil.copytree(world.memory, memory)
    file = next(memory.glob("shard-*/memory.safetensors"))
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(InputError, match=r"memory\.safetensors: its sha256"):
        evaluate.main(arguments(dataclasses.replace(world, memory=memory), tmp_path / "evaluation", "--verify"))


def test_seconds_of_an_answer_are_measured_where_they_are_asked_for(world: World, tmp_path: Path) -> None:
    common = ["--limit", "2", "--generate", "0", "--conditions", "index", "--baselines", "bm25"]
    assert evaluate.main(arguments(world, tmp_path / "timed", *common, "--timed", "1")) == 0
    rows = pq.read_table(tmp_path / "timed" / "per_question.parquet").to_pylist()
    timed = [row for row in rows if row["answer.seconds"] is not None]
    assert [(row["system"], row["split"]) for row in timed] == [("before", "unseen"), ("before", "seen")]
    assert all(row["answer.seconds"] > 0 for row in timed)
    assert "Seconds of a whole answer" in (tmp_path / "timed" / "report.md").read_text()

    with pytest.raises(InputError, match="--timed 1 answers questions, and --retrieval-only answers none"):
        evaluate.main(arguments(world, tmp_path / "ranks", "--retrieval-only", "--timed", "1"))
