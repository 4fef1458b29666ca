"""Retriever and ask: against brute force, bound to the right MEMORY and INDEX, and as a command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clara import ask
from clara.arrays import NO_ROW
from clara.config.model import Backbone, Score
from clara.config.tree import Retrieval
from clara.data.questions import Question, evenly, read_questions, write_questions
from clara.errors import InputError
from clara.memory.compact import compact
from clara.memory.mean import MEAN
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.question_mean import copy_with_score, mean_query
from clara.retrieval.ranker import Queries
from clara.retrieval.reply import reply_of
from clara.retrieval.retriever import Retriever
from pipelines import build_index
from tests.helpers import evaluation_world, tiny
from tests.helpers.evaluation_world import World
from training import set_score

QUESTIONS = [
    "Who is the mayor of Arlen on the Tamo?",
    "What does the market of Jorvik on the Wend sell?",
    "When was the bridge built?",
]


@pytest.fixture(scope="module")
def world(evaluation_artefacts: World) -> World:
    return evaluation_artefacts


@pytest.fixture(scope="module")
def retriever(world: World) -> Retriever:
    return Retriever.open(world.checkpoint, world.memory, world.index)


def cosines(retriever: Retriever, question: str) -> dict[int, float]:
    """Flattened cosine with every row, by the definition."""
    query = retriever.model.encode_questions([question])[0].numpy().ravel().astype(np.float64)
    rows = retriever.store.row_ids.tolist()
    memory = retriever.store.memory(rows).reshape(len(rows), -1).astype(np.float64)
    return dict(zip(rows, memory @ query / np.linalg.norm(memory, axis=1) / np.linalg.norm(query), strict=True))


@pytest.mark.parametrize("with_index", [True, False])
def test_search_equals_brute_force_and_keeps_documents_out(world: World, with_index: bool) -> None:
    opened = Retriever.open(world.checkpoint, world.memory, world.index if with_index else None)
    excluded = [["doc-00"], [], ["doc-03", "doc-04", "not a document"]]
    found, scores = opened.search(opened.queries(QUESTIONS), 7, excluded)
    for question, documents, rows, values in zip(QUESTIONS, excluded, found.tolist(), scores.tolist(), strict=True):
        expected = cosines(opened, question)
        for document in documents:
            for row in opened.store.rows_of(document):
                del expected[row]
        best = sorted(expected, key=lambda row: -expected[row])[:7]
        assert rows == best
        assert values == pytest.approx([expected[row] for row in best], abs=1e-5)


@pytest.mark.parametrize("with_index", [True, False])
def test_fewer_rows_than_asked_for(world: World, with_index: bool) -> None:
    opened = Retriever.open(world.checkpoint, world.memory, world.index if with_index else None)
    everything = len(opened.store)
    rows, scores = opened.search(opened.queries(QUESTIONS[:1]), everything + 2, [["doc-00"]])
    assert rows[0, -4:].tolist() == [NO_ROW] * 4  # two rows of the document, two that never were
    assert np.isneginf(scores[0, -4:]).all()
    assert (rows[0, :-4] != NO_ROW).all()


def test_queries_do_not_depend_on_their_batch(retriever: Retriever) -> None:
    together = retriever.queries(QUESTIONS)
    for question, query in zip(QUESTIONS, together, strict=True):
        torch.testing.assert_close(query, retriever.model.encode_questions([question])[0], rtol=0, atol=1e-5)


def test_an_answer_is_read_from_its_passages(retriever: Retriever) -> None:
    (answered,) = retriever.ask(QUESTIONS[:1], num_selected=3, max_new_tokens=6)
    expected = cosines(retriever, QUESTIONS[0])
    rows = [p.row_id for p in answered.passages]
    assert rows == sorted(expected, key=lambda row: -expected[row])[:3]
    assert [p.score for p in answered.passages] == pytest.approx([expected[r] for r in rows], abs=1e-5)
    memory = torch.from_numpy(retriever.store.memory(rows))
    assert answered.answer == retriever.model.generate(QUESTIONS[:1], [memory], max_new_tokens=6)[0]
    for passage, chunk in zip(answered.passages, retriever.store.records(rows), strict=True):
        assert (passage.title, passage.text, passage.document_id) == (chunk.title, chunk.text, chunk.document_id)


def test_a_question_that_is_cut_is_reported_with_the_place(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings, long = retriever.model.settings, f"It rained for {'a long, long ' * 20}time. {QUESTIONS[0]}"
    assert retriever.ask([long], num_selected=1, max_new_tokens=2)[0].unread == ""
    assert "searched for without" not in caplog.text
    limit = len(retriever.model.question_ids(long)) - 4
    monkeypatch.setattr(retriever.model, "settings", settings.model_copy(update={"max_question_tokens": limit}))
    whole, cut = retriever.ask([QUESTIONS[1], long], num_selected=1, max_new_tokens=2)
    assert whole.unread == ""
    assert cut.unread
    assert long.endswith(cut.unread)
    assert reply_of(cut).unread == cut.unread
    assert f"1 question(s) have more than the {limit} tokens" in caplog.text
    assert f"is cut before {cut.unread!r}" in caplog.text
    assert f"it was searched for without {cut.unread!r}" in ask.as_text(cut)


def test_refuses_empty_questions_and_impossible_k(retriever: Retriever) -> None:
    with pytest.raises(InputError, match=r"question 2 is '  '"):
        retriever.ask(["What?", "  "])
    for num_selected in (0, len(retriever.store) + 1):
        with pytest.raises(
            InputError, match=f"num_selected is {num_selected}, the MEMORY holds {len(retriever.store)} rows"
        ):
            retriever.ask(["What?"], num_selected=num_selected)
    with pytest.raises(InputError, match=r"question 1 is 'a\\udc80'; expected .*UTF-8"):
        retriever.ask(["a\udc80"])
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        retriever.ask(["What?"], max_new_tokens=0)


def test_another_compressors_memory_is_refused_unless_staleness_is_measured(
    world: World, tiny_backbone: Path, tmp_path: Path
) -> None:
    save_checkpoint(tiny.build_model(tiny_backbone, seed=9), tmp_path / "other", stage="pretrain", recipe={})
    with pytest.raises(InputError, match=r"compressor: expected [0-9a-f]{16}…, found [0-9a-f]{16}…"):
        Retriever.open(tmp_path / "other", world.memory)
    stale = Retriever.open(tmp_path / "other", world.memory, accept_stale=True)
    assert len(stale.ask(QUESTIONS[:1], num_selected=1, max_new_tokens=2)) == 1
    save_checkpoint(tiny.build_model(tiny_backbone, markers=False), tmp_path / "unlike", stage="pretrain", recipe={})
    with pytest.raises(InputError, match="markers: expected False, found True"):
        Retriever.open(tmp_path / "unlike", world.memory, accept_stale=True)


def test_another_memorys_index_is_refused(world: World, tiny_backbone: Path, corpus_file: Path, tmp_path: Path) -> None:
    save_checkpoint(tiny.build_model(tiny_backbone, seed=9), tmp_path / "other", stage="pretrain", recipe={})
    memory = evaluation_world.write_memory(tmp_path / "memory", tmp_path / "other", corpus_file)
    with pytest.raises(InputError, match="build an index for this one"):
        Retriever.open(tmp_path / "other", memory, world.index)


def test_command_prints_answers_with_passages(
    world: World, retriever: Retriever, capsys: pytest.CaptureFixture[str]
) -> None:
    artefacts = ["--checkpoint", str(world.checkpoint), "--memory", str(world.memory), "--index", str(world.index)]
    short = ["--num-selected", "2", "--max-new-tokens", "4"]
    expected = retriever.ask(QUESTIONS[:2], num_selected=2, max_new_tokens=4)
    assert ask.main([*artefacts, *short, *QUESTIONS[:2]]) == 0
    text = capsys.readouterr().out
    for answered in expected:
        assert f"Q: {answered.question}" in text
        for passage in answered.passages:
            assert f"{passage.score:+.4f}  {passage.title}" in text
            assert passage.text.split(". ")[0][:60] in text
    assert ask.main([*artefacts, *short, "--json", *QUESTIONS[:2]]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["answer"] for r in records] == [a.answer for a in expected]
    assert ask.main([*artefacts, "--dry-run"]) == 0
    assert f"{len(retriever.store)} rows" in capsys.readouterr().out


def test_command_refuses(world: World, tmp_path: Path) -> None:
    artefacts = ["--checkpoint", str(world.checkpoint), "--memory", str(world.memory)]
    with pytest.raises(InputError, match="no question given"):
        ask.main(artefacts)
    for extra, message in (
        (["--device", "tpux"], "no kind of device"),
        (["--first-level", "0"], "--first-level is 0; expected 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            ask.main([*artefacts, *extra, "Who?"])
    half = tmp_path / "half"
    shutil.copytree(world.memory, half)
    for field in ("files", "made_by", "fingerprint_fields"):
        manifest = json.loads((world.memory / "manifest.json").read_text(encoding="utf-8"))
        del manifest[field]
        (half / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(InputError, match=rf"half/manifest\.json:? {field}:? missing"):
            ask.main(["--checkpoint", str(world.checkpoint), "--memory", str(half), "Who?"])
    (half / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"half: no manifest\.json"):
        ask.main(["--checkpoint", str(world.checkpoint), "--memory", str(half), "Who?"])


def test_a_flipped_byte_is_found_on_demand(world: World, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    shutil.copytree(world.memory, memory)
    file = next(memory.glob("shard-*/memory.safetensors"))
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(InputError, match=r"memory\.safetensors: its sha256 is not the manifest's; the file is damaged"):
        ask.main(["--checkpoint", str(world.checkpoint), "--memory", str(memory), "--verify", "Who?"])


def test_answers_are_judged_by_questions(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(world.checkpoint), "--memory", str(world.memory), "--max-new-tokens", "3"]
    assert ask.main([*given, "--json", *QUESTIONS[:2]]) == 0
    first, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    answers = (first["answer"].upper() + ".", "never that")
    judged = [Question(str(i), q, (a,)) for i, (q, a) in enumerate(zip(QUESTIONS, answers, strict=False))]
    write_questions(tmp_path / "judge", judged, recipe={})
    given += ["--judge-by", str(tmp_path / "judge")]
    assert ask.main([*given, *QUESTIONS[:2]]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n  right\n") == 1
    assert "  wrong; expected never that\n" in printed
    assert printed.endswith("\n1 of 2 answers are right.\n")
    assert ask.main([*given, "--json", *QUESTIONS[:2]]) == 0
    assert [json.loads(line)["right"] for line in capsys.readouterr().out.splitlines()] == [True, False]
    with pytest.raises(InputError, match=r"--judge-by .*: does not hold 'When was the bridge built\?'"):
        ask.main([*given, *QUESTIONS])


# --- other scores than the published one ---

OTHER = [Score(centred=True), Score(pooling="slot_mean"), Score(pooling="slot_mean", centred=True)]


def with_score(world: World, folder: Path, score: Score) -> Path:
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    mean = mean_query(model, QUESTIONS) if score.centred else None
    copy_with_score(Checkpoint.open(world.checkpoint), folder, score, mean, recipe={"made_by": "tests"})
    return folder


@pytest.mark.parametrize("score", OTHER)
def test_every_score_searches_as_its_definition_says(
    world: World, tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = with_score(world, tmp_path / "checkpoint", score)
    opened = Retriever.open(checkpoint, world.memory)
    plain = Retriever.open(world.checkpoint, world.memory)
    memory, query = plain.store.memory(plain.store.row_ids), plain.queries(QUESTIONS).numpy()
    if score.centred:
        memory, query = memory - memory.mean(axis=0), query - query.mean(axis=0)
    if score.pooling == "slot_mean":
        memory, query = memory.mean(axis=1, keepdims=True), query.mean(axis=1, keepdims=True)
    memory, query = memory.reshape(len(memory), -1).astype(np.float64), query.reshape(len(query), -1).astype(np.float64)
    expected = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ (
        memory / np.linalg.norm(memory, axis=1, keepdims=True)
    ).T
    found, scores = opened.search(opened.queries(QUESTIONS), 7)
    for line, rows, values in zip(expected, found, scores, strict=True):
        assert rows.tolist() == plain.store.row_ids[np.argsort(-line)[:7]].tolist()
        assert values == pytest.approx(np.sort(line)[::-1][:7], abs=1e-4)
    queries = Queries(QUESTIONS[:1], [()], opened.queries(QUESTIONS[:1]))
    assert opened.ranker.score(queries, found[:1].tolist())[0] == pytest.approx(scores[0], abs=1e-6)
    assert [p.score for p in opened.ask(QUESTIONS[:1], num_selected=3)[0].passages] == pytest.approx(
        scores[0, :3], abs=1e-5
    )
    with pytest.raises(InputError, match="leave the index out"):
        Retriever.open(checkpoint, world.memory, world.index)
    # The same through an INDEX of this score: among few rows exactly, or with L candidates by key.
    command = ["--memory", str(world.memory), "--output", str(tmp_path / "index"), "--checkpoint", str(checkpoint)]
    capsys.readouterr()
    assert build_index.main([*command, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["score"] == score.model_dump()
    assert ("mean" in plan) == score.centred
    assert build_index.main([*command, "--quiet"]) == 0
    for exact_rows in (5000, 0):
        indexed = Retriever.open(
            checkpoint, world.memory, tmp_path / "index", retrieval=Retrieval(exact_rows=exact_rows)
        )
        rows, values = indexed.search(indexed.queries(QUESTIONS), 7)
        assert np.array_equal(rows, found)
        assert values == pytest.approx(scores, abs=1e-6)


def test_a_saved_checkpoint_keeps_the_score_and_the_mean(world: World, tmp_path: Path) -> None:
    checkpoint = with_score(world, tmp_path / "checkpoint", OTHER[2])
    model = load_checkpoint(checkpoint, Backbone(dtype="float32"))
    save_checkpoint(model, tmp_path / "again", stage="joint", recipe={})
    again = load_checkpoint(tmp_path / "again", Backbone(dtype="float32"))
    assert again.settings.score == OTHER[2]
    assert again.question_mean.mean is not None
    assert torch.equal(again.question_mean.mean, mean_query(model, QUESTIONS))


def test_a_memory_without_a_mean_or_a_checkpoint_without_one_is_refused(world: World, tmp_path: Path) -> None:
    checkpoint = with_score(world, tmp_path / "checkpoint", OTHER[2])
    older = tmp_path / "memory"
    shutil.copytree(world.memory, older)
    manifest = json.loads((older / "manifest.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != MEAN]
    (older / "manifest.json").write_text(json.dumps(manifest))
    Retriever.open(world.checkpoint, older)  # the published score needs none
    with pytest.raises(InputError, match=r"has no mean of its vectors.*pipelines\.compact"):
        Retriever.open(checkpoint, older)
    compact(MemoryStore.open(older), tmp_path / "compacted")
    Retriever.open(checkpoint, tmp_path / "compacted")
    zero = torch.zeros_like(load_checkpoint(checkpoint).question_mean.mean)
    copy_with_score(Checkpoint.open(world.checkpoint), tmp_path / "unknown", OTHER[2], zero, recipe={})
    with pytest.raises(InputError, match=r"questions' mean is not known.*training\.set_score"):
        Retriever.open(tmp_path / "unknown", world.memory)
    (checkpoint / "question_mean.safetensors").unlink()
    with pytest.raises(InputError, match="question_mean"):
        Retriever.open(checkpoint, world.memory)


def test_the_command_takes_the_mean_of_unlabelled_questions(world: World, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(world.checkpoint), "--output", str(tmp_path / "made"), "--dtype", "float32"]
    score = ["--pooling", "slot_mean", "--centred"]
    with pytest.raises(InputError, match="give QUESTIONS"):
        set_score.main([*arguments, *score])
    assert set_score.main([*arguments, *score, "--questions", str(world.questions), "--limit", "5"]) == 0
    model = load_checkpoint(tmp_path / "made", Backbone(dtype="float32"))
    asked = evenly([q.question for q in read_questions(world.questions)], 5)
    assert model.question_mean.mean is not None
    assert torch.equal(model.question_mean.mean, mean_query(model, asked))
