"""Utilities scored once: equal to brute-force likelihoods, used by a run, refused where they don't fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone
from clara.config.tree import Config
from clara.data.questions import read_questions, write_questions
from clara.data.utilities import FILE, KIND, Scored, read_utilities, write_shard
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.embedding import DenseEncoder
from clara.memory.identity import memory_identity
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.retrieval.dense import DenseRanker
from clara.retrieval.pools import QuestionRows
from clara.retrieval.ranker import Queries
from clara.storage.artefact import Artefact
from clara.storage.manifest import manifest_hash, read_manifest, write_manifest
from pipelines.score_utilities import command as score_utilities
from tests.helpers import embedding_model, tiny
from tests.helpers.joint_world import World
from training import joint
from training.refresh.job import run_job
from training.stages.scored_stage import check_scored

SETTINGS: dict[str, object] = {"joint__train_generator": "false", "joint__answer_weight": 0, "joint__utility_weight": 1}


def command(world: World, output: Path, *more: str) -> list[str]:
    given = {
        "questions": world.questions,
        "checkpoint": world.checkpoint,
        "memory": world.memory,
        "index": world.index,
        "output": output,
    }
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [*options, "--pool-size", "6", "--from-index", "2", "--from-bm25", "2", "--num-workers", "1", *more]


@pytest.fixture(scope="module")
def scored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored") / "utilities"
    assert score_utilities.main(command(world, output)) == 0
    return output


def test_a_search_that_is_never_exact_is_another_recipe(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(*more: str) -> dict[str, object]:
        assert score_utilities.main(command(world, tmp_path / "none", "--dry-run", *more)) == 0
        return dict(json.loads(capsys.readouterr().out))

    assert recipe("--exact-rows", "0") == recipe() | {"exact_rows": 0}
    assert recipe("--exact-rows", "5000") == recipe()
    assert recipe("--exact-rows", "0", "--from-index", "0") == recipe("--from-index", "0")


def train(world: World, output: Path, utilities: Path, **values: object) -> int:
    return joint.main(["--launcher", "local", *world.sets(output, utilities=utilities, **SETTINGS | values)])


def test_each_utility_is_the_likelihood_of_the_answer_given_that_row_alone(world: World, scored: Path) -> None:
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32")).eval()
    store = MemoryStore.open(world.memory)
    found = read_utilities(scored)
    questions = read_questions(world.questions, "train")
    assert found.keys() == {q.question_id for q in questions}
    for question in questions[:4]:
        one = found[question.question_id]
        for row, nats in zip(one.row_ids, one.log_likelihoods, strict=True):
            memory = torch.from_numpy(store.memory([row]))
            expected, _ = model.answer_log_likelihood([question.question], [memory], [question.answers[0]])
            assert nats == pytest.approx(float(expected), abs=1e-4)
        expected, _ = model.answer_log_likelihood([question.question], [memory[:0]], [question.answers[0]])
        assert one.without == pytest.approx(float(expected), abs=1e-4)


def test_pools_hold_the_positives_and_nothing_that_is_kept_out(world: World, scored: Path) -> None:
    store, found = MemoryStore.open(world.memory), read_utilities(scored)
    for question in read_questions(world.questions, "train"):
        rows, known = found[question.question_id].row_ids, QuestionRows.of(question, store)
        assert len(rows) == len(set(rows)) == 6
        assert set(known.positive) <= set(rows)
        assert not known.excluded & set(rows)


def test_published_pools_are_scored_whole(world: World, tmp_path: Path) -> None:
    store, asked = MemoryStore.open(world.memory), read_questions(world.questions, "train")[:2]
    write_questions(tmp_path / "two", asked, recipe={})
    assert (
        score_utilities.main(
            [*command(replace(world, questions=tmp_path / "two"), tmp_path / "utilities"), "--published-pools"]
        )
        == 0
    )
    found = read_utilities(tmp_path / "utilities")
    for question in asked:
        rows = [
            row for name in question.candidate_ids if name not in question.exclude_ids for row in store.rows_of(name)
        ]
        assert list(found[question.question_id].row_ids) == rows
    write_questions(tmp_path / "bare", [replace(q, candidate_ids=()) for q in asked], recipe={})
    with pytest.raises(InputError, match=r"--published-pools: question .* has no candidate_ids"):
        score_utilities.main(
            [*command(replace(world, questions=tmp_path / "bare"), tmp_path / "none"), "--published-pools"]
        )


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    world: World, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "utilities"
    shutil.copytree(scored, copy)
    (shard, *_) = sorted(copy.glob(f"shard-*/{FILE}"))
    shard.unlink()
    (copy / "manifest.json").unlink()
    assert score_utilities.main(command(world, copy)) == 0
    assert read_manifest(copy)["files"] == read_manifest(scored)["files"]
    capsys.readouterr()
    assert score_utilities.main(command(world, copy)) == 0
    assert "up to date" in capsys.readouterr().out
    with pytest.raises(InputError, match="utilities of another recipe"):
        score_utilities.main(command(world, copy, "--seed", "1"))
    assert score_utilities.main(command(world, copy, "--seed", "1", "--overwrite")) == 0
    assert read_utilities(copy) != read_utilities(scored)


def test_questions_that_were_scored_before_are_not_scored_again(world: World, scored: Path, tmp_path: Path) -> None:
    few, marked, more = tmp_path / "few", tmp_path / "marked", tmp_path / "more"
    assert score_utilities.main(command(world, few, "--limit", "3")) == 0
    known = [replace(s, without=s.without - 1) for s in read_utilities(few).values()]
    recipe = read_manifest(few)["made_by"]["recipe"]
    write_manifest(marked, kind=KIND, files=[write_shard(marked, "shard-00000-of-00001", known)], recipe=recipe)
    assert score_utilities.main(command(world, more, "--reuse", str(marked))) == 0
    assert read_utilities(more) == read_utilities(scored) | {s.question_id: s for s in known}
    assert len(known) == 3 < len(read_utilities(scored))
    for more_options, said in (
        (("--pool-size", "3"), "was scored with another pool_size"),
        (("--shuffle-answers",), "--reuse with --shuffle-answers"),
    ):
        with pytest.raises(InputError, match=said):
            score_utilities.main(command(world, tmp_path / "none", "--reuse", str(marked), *more_options))


@pytest.mark.parametrize("num_candidates", [6, 4])
def test_a_run_trains_the_query_reasoner_on_them(
    world: World, scored: Path, tmp_path: Path, num_candidates: int
) -> None:
    assert (
        train(world, tmp_path, scored, joint__steps=3, joint__num_candidates=num_candidates, joint__num_selected=2) == 0
    )
    lines = [json.loads(line) for line in next(tmp_path.glob("run-*/metrics.jsonl")).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["utility_loss"] > 0 for line in lines)
    roles = read_manifest(tmp_path / "checkpoint")["roles"]
    before, after = (
        (p / read_manifest(p)["roles"]["query_reasoner"] / "adapter_model.safetensors").read_bytes()
        for p in (world.checkpoint, tmp_path / "checkpoint")
    )
    assert roles["query_reasoner"] == "query_reasoner"
    assert before != after


@pytest.mark.parametrize("kind", ["helpful", "frequency", "all", "others"])
def test_a_run_trains_on_target_mass_against_rows_that_are_not_read(
    world: World, scored: Path, tmp_path: Path, kind: str
) -> None:
    sets = {"joint__utility_target": "mass", "joint__denominator": kind, "joint__steps": 2}
    assert train(world, tmp_path, scored, joint__num_candidates=6, joint__num_selected=2, **sets) == 0
    lines = [json.loads(line) for line in next(tmp_path.glob("run-*/metrics.jsonl")).read_text().splitlines()]
    assert all(line["utility_loss"] > 0 for line in lines)


def test_nothing_is_searched_by_words_in_such_a_run(
    world: World, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("BM25 is built")

    monkeypatch.setattr("clara.retrieval.bm25.Bm25.__init__", refuse)
    assert train(world, tmp_path, scored, joint__steps=1, joint__from_bm25=2, joint__from_dense=2) == 0


def test_pools_hold_what_dense_vectors_find(world: World, tmp_path: Path) -> None:
    model = str(embedding_model.write(tmp_path / "model"))
    index = tmp_path / "index"
    build_index(world.memory, index, "Flat", num_queries=0, dense=DenseEncoder(model))
    options = ["--from-index", "0", "--from-bm25", "0", "--from-dense", "3", "--dense-model", model, "--no-positives"]
    output = tmp_path / "utilities"
    assert score_utilities.main(command(world, output, *options, "--index", str(index))) == 0
    store = MemoryStore.open(world.memory)
    ranker = DenseRanker.open(Artefact.open(index, "INDEX"), store, DenseEncoder(model))
    questions, found = read_questions(world.questions, "train"), read_utilities(output)
    ranked = ranker.rank(Queries.of(questions, store), 3)
    assert [list(found[q.question_id].row_ids[:3]) for q in questions] == ranked
    recipe = read_manifest(output)["made_by"]["recipe"]
    assert (recipe["from_dense"], recipe["dense_model"]) == (3, DenseEncoder(model).hash)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"joint__train_generator": "true"}, "joint.train_generator is true"),
        ({"joint__train_compressor": "true"}, "joint.train_compressor is true"),
        ({"joint__utility_weight": 0, "joint__answer_weight": 1}, "joint.utility_weight is 0"),
        ({"joint__shuffle_answers": "true"}, "joint.shuffle_answers is true"),
    ],
)
def test_what_would_change_them_is_refused(
    world: World, scored: Path, tmp_path: Path, values: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        train(world, tmp_path, scored, **values)


def test_another_memory_is_refused(world: World, scored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "utilities"
    shutil.copytree(scored, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for field, name in (("memory", "MEMORY"), ("reader", "generator")):
        (copy / "manifest.json").write_text(json.dumps(manifest | {field: "0" * 64}))
        sets = [part for part in world.sets(tmp_path / "run", utilities=copy, **SETTINGS) if part != "--set"]
        with pytest.raises(InputError, match=f"scored with {name} 000000000000.*score them again"):
            check_scored(load(None, sets))


def test_a_pool_without_as_many_likelihoods_is_refused() -> None:
    with pytest.raises(InputError, match="2 rows, 1 likelihoods"):
        Scored("q", (1, 2), (-1.0,), -2.0)


def test_a_memory_that_is_built_again_finishes_and_uses_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_utilities, "_QUESTIONS_A_SHARD", 8)
    output = tmp_path / "utilities"
    assert score_utilities.main(command(world, output)) == 0
    finished = {path: path.stat().st_mtime_ns for path in sorted(output.glob(f"shard-*/{FILE}"))}
    before = read_utilities(output)
    stopped, *kept = finished
    stopped.unlink()
    (output / "manifest.json").unlink()
    run_job(world.refresh_job(tmp_path))
    again = replace(world, memory=tmp_path / "memory", index=tmp_path / "index")
    assert manifest_hash(again.memory) != manifest_hash(world.memory)
    assert memory_identity(again.memory) == memory_identity(world.memory)
    assert score_utilities.main(command(again, output)) == 0
    assert kept
    assert all(path.stat().st_mtime_ns == finished[path] for path in kept)
    assert read_utilities(output) == before
    for one in (world, again):
        check_scored(settings_of(one, output))
    # UTILITIES from before identities name their MEMORY by its manifest.
    manifest = json.loads((output / "manifest.json").read_text()) | {"memory": manifest_hash(world.memory)}
    (output / "manifest.json").write_text(json.dumps(manifest))
    check_scored(settings_of(world, output))
    with pytest.raises(InputError, match="scored with MEMORY"):
        check_scored(settings_of(again, output))


def test_a_memory_of_another_compressor_is_refused(
    world: World, scored: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    save_checkpoint(tiny.build_model(tiny_backbone, seed=9), tmp_path / "other", stage="pretrain", recipe={})
    run_job(world.refresh_job(tmp_path, tmp_path / "other"))
    with pytest.raises(InputError, match=r"scored with MEMORY \w{12}, .*another fingerprint.*score them again"):
        check_scored(settings_of(replace(world, memory=tmp_path / "memory"), scored))


def settings_of(world: World, utilities: Path) -> Config:
    """The configuration of a run that uses them."""
    sets = world.sets(utilities.parent / "run", utilities=utilities, **SETTINGS)
    return load(None, [part for part in sets if part != "--set"])
