"""Every retriever under every generator, alignment and hops, through the command: what each report row holds."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clara.data.questions import read_questions, write_questions
from clara.errors import InputError
from clara.retrieval.retriever import Retriever
from tests.helpers import evaluation_world
from tests.helpers.evaluation_world import World
from training import evaluate
from training.evaluation.run import compared_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, evaluation_artefacts: World) -> World:
    """A world whose questions have a second right document; its second system searches with another query."""
    folder = tmp_path_factory.mktemp("cross")
    questions = [
        replace(
            q,
            positive_ids=(*q.positive_ids, "doc-39"),
            positive_hops=(1, 2),
            candidate_ids=tuple(dict.fromkeys((*q.candidate_ids, *q.positive_ids, "doc-39")))
            if q.candidate_ids
            else (),
        )
        for q in read_questions(evaluation_artefacts.questions)
    ]
    write_questions(folder / "hops", questions, recipe={"made_by": "tests"})
    return replace(evaluation_artefacts, questions=folder / "hops")


def turned(checkpoint: Path, output: Path) -> Path:
    """The same compressor and generator with a query reasoner of another seed: it ranks the same MEMORY otherwise."""
    import torch

    from clara.config.model import Backbone
    from clara.model.checkpoint import load_checkpoint, save_checkpoint

    model = load_checkpoint(checkpoint, Backbone(dtype="float32"))
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.train_only(["query_reasoner"]):
            parameter += 0.5 * torch.randn(parameter.shape, generator=rng)
    save_checkpoint(model, output, stage="joint", recipe={"made_by": "tests"})
    return output


@pytest.mark.slow
def test_every_generator_reads_what_every_retriever_found(world: World, tmp_path: Path) -> None:
    after, output = turned(world.trained, tmp_path / "turned"), tmp_path / "evaluation"
    arguments = [
        "--questions",
        str(world.questions),
        "--output",
        str(output),
        "--num-selected",
        "2",
        "--splits",
        "unseen",
        "--limit",
        "4",
    ]
    arguments += [
        "--system",
        f"before={world.checkpoint},{world.memory}",
        "--system",
        f"after={after},{world.memory}",
        "--cross",
    ]
    arguments += ["--baselines", "bm25,text", "--generate", "0", "--alignment", "2"]
    assert evaluate.main(arguments) == 0
    report = json.loads((output / "report.json").read_text())
    assert set(report["systems"]) == {
        *(
            "before",
            "after",
            "before/after",
            "after/before",
            "bm25/before",
            "bm25/after",
            "text/bm25",
            "text/before",
            "text/after",
        )
    }
    rows = {(r["system"], r["question_id"]): r for r in pq.read_table(output / "per_question.parquet").to_pylist()}
    names = sorted({question for _, question in rows})
    assert any(rows["before", n]["index_documents"] != rows["after", n]["index_documents"] for n in names)
    open_after = Retriever.open(after, world.memory)
    for n in names:
        # The documents are the retriever's; what no prompt contains is the generator's.
        for finder, crossed in (
            ("before", "before/after"),
            ("after", "after/before"),
            ("before", "text/before"),
            ("bm25/before", "bm25/after"),
        ):
            assert rows[crossed, n]["pool_documents"] == rows[finder, n]["pool_documents"]
            assert rows[crossed, n]["index.recall@5"] == rows[finder, n]["index.recall@5"]
        assert rows["before/after", n]["none.log_likelihood"] == pytest.approx(
            rows["after", n]["none.log_likelihood"], abs=1e-4
        )
        assert rows["text/before", n]["none.log_likelihood"] == pytest.approx(
            rows["text/bm25", n]["none.log_likelihood"], abs=1e-4
        )
    # Read again: what `before` found in the pool, under the generator of `after`.
    row = rows["before/after", names[0]]
    chunks = [
        c["row_id"]
        for r in rows.values()
        if r["question_id"] == names[0] and r["system"] == "before"
        for c in r["alignment_candidates"]
    ]
    nats, _ = open_after.model.answer_log_likelihood(
        [row["question"]], [open_after.memories(chunks[:2])], [row["answers"][0]]
    )
    assert row["pool.log_likelihood"] == pytest.approx(float(nats[0]), abs=1e-3)

    # Four differences make one: retrieval under each generator, and the generator on each retrieval.
    of = report["differences"]["unseen"]
    whole, parts = (
        of["after - before"],
        [
            (of["after - before/after"], of["before/after - before"]),
            (of["after/before - before"], of["after - after/before"]),
        ],
    )
    for first, second in parts:
        total = first["index.log_likelihood"]["difference"] + second["index.log_likelihood"]["difference"]
        assert total == pytest.approx(whole["index.log_likelihood"]["difference"], abs=1e-6)
    assert of["before/after - before"]["index.recall@5"]["difference"] == 0

    aligned = [r for r in rows.values() if r["alignment_candidates"]]
    assert len(aligned) == 2 * 9
    for r in aligned:
        assert [c["title"] for c in r["alignment_candidates"] if c["document_id"] == "doc-39"]
        untold = [c["generator"] is None for c in r["alignment_candidates"]]
        assert all(untold) if r["system"].startswith("text/") else not any(untold)
    for measure in ("alignment.generator", "alignment.generator_solo", "alignment.text", "alignment.text_lexical"):
        assert -1 <= report["systems"]["before/after"]["unseen"][measure]["value"] <= 1
    assert "alignment.generator" not in report["systems"]["text/bm25"]["unseen"]
    # The plain LM saw no training: on one retrieval it gives one utility, whoever else reads.
    text = [
        report["systems"][name]["unseen"]["alignment.text"]["value"]
        for name in ("before", "before/after", "text/before")
    ]
    assert text == pytest.approx([text[0]] * 3, abs=0.1)

    for name in names:
        ranking = rows["after", name]["pool_documents"]
        assert rows["after", name]["pool.bridging_rank"] == ranking.index("doc-39") + 1
    page = (output / "report.md").read_text()
    for heading in (
        "Paired differences",
        "Retrieval in the pools",
        "Utility alignment",
        "Mean rank of a multi-hop",
        "alignment-unseen.png",
    ):
        assert heading in page
    assert "Mean rank of a multi-hop" in (output / "report.html").read_text()


def test_cross_refuses_memories_of_different_rows(world: World, tmp_path: Path, corpus_file: Path) -> None:
    smaller = tmp_path / "corpus.jsonl"
    smaller.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[:30]))
    other = evaluation_world.write_memory(tmp_path / "memory", world.checkpoint, smaller)
    arguments = [
        "--questions",
        str(world.questions),
        "--output",
        str(tmp_path / "evaluation"),
        "--retrieval-only",
        "--cross",
    ]
    arguments += [
        "--system",
        f"a={world.checkpoint},{world.memory}",
        "--system",
        f"b={world.checkpoint},{other}",
        "--num-selected",
        "1",
    ]
    with pytest.raises(InputError, match=r"--cross: the MEMORY of system b, .* has other rows than that of a"):
        evaluate.main(arguments)


def test_pairs_that_are_compared() -> None:
    labels = ["a", "b", "c", "a/b", "b/a", "bm25/a", "bm25/b", "text/bm25", "text/a", "text/b"]
    pairs = compared_pairs(["a", "b", "c"], [{"system": label} for label in labels])
    assert {("b", "a"), ("c", "a"), ("c", "b")} < set(pairs)
    assert {("b", "a/b"), ("a/b", "a"), ("b/a", "a"), ("b", "b/a"), ("text/b", "text/a")} < set(pairs)
    assert {("b", "bm25/b"), ("c", "text/bm25")} < set(pairs)
    assert len(set(pairs)) == len(pairs) == 3 + 5 + 2 + 3
