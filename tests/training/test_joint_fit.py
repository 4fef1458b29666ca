"""Joint training that fits its fused score: what the fit is, when it takes place, resuming, and refusals."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone, Fusion, Score
from clara.data.questions import Question, fold_of, read_questions
from clara.data.utilities import Scored
from clara.errors import InputError
from clara.index.build import build_index
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint
from clara.model.question_mean import copy_with_score, replace_fusion
from clara.retrieval.bm25 import Bm25
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever
from pipelines.score_utilities.command import main as score_utilities
from tests.helpers import ranks
from tests.helpers.joint_world import Inline, World, weights
from training import fit_score, joint
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.refresh.versions import Versions
from training.run.fold import fitted_questions
from training.score_fit.fold import FoldFit
from training.stages.joint_stage import JointStage

FIT: dict[str, object] = {"joint__fit_questions": 8, "joint__fit_share": 0.4}
REFRESHED = FIT | {
    "joint__train_compressor": "true",
    "joint__steps": 8,
    "joint__refresh__policy": "full",
    "joint__refresh__switch": "fixed",
    "joint__refresh__start_step": 2,
    "joint__refresh__delta_steps": 2,
    "joint__refresh__every_steps": 3,
    "joint__refresh__keep_versions": 3,
}


def train(world: World, output: Path, **values: object) -> dict[str, Any]:
    assert joint.main(["--launcher", "local", *world.sets(output, **values)]) == 0
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def fusion_of(output: Path) -> Fusion:
    return Checkpoint.open(output / "checkpoint").settings.fusion


def metrics(output: Path) -> dict[int, dict[str, float]]:
    return read(next(output.glob("run-*")) / "metrics.jsonl")


def stage_of(world: World, output: Path, **values: object) -> JointStage:
    config = load(None, world.sets(output, **FIT | values)[1::2])
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    fold = FoldFit(fitted_questions(config), config, output)
    stage = JointStage(
        model, read_questions(world.questions, "train"), config, Versions(config, output, output, None, 1), fold=fold
    )
    stage.begin(LocalEngine(stage.module, stage.groups(), stage.optimiser))
    return stage


def by_command(world: World, folder: Path) -> dict[str, float]:
    """Weights that the two commands fit for a run in `folder / "out"`; as the loss is convex, they are the same."""
    given = ["--memory", str(world.memory), "--index", str(world.index), "--questions", str(world.questions)]
    given += ["--checkpoint", str(folder / "out" / "checkpoint")]
    drawn = ["--pool-size", "8", "--from-index", "4", "--from-bm25", "2", "--no-positives", "--fold", "0.4"]
    drawn += ["--limit", "8", "--num-workers", "1", "--output", str(folder / "utilities")]
    assert score_utilities([*given, *drawn]) == 0
    assert fit_score.main([*given, "--utilities", str(folder / "utilities"), "--output", str(folder / "fitted")]) == 0
    return dict(Checkpoint.open(folder / "fitted").settings.fusion.weights)


def test_the_checkpoint_holds_the_weights_that_the_command_fits(world: World, tmp_path: Path) -> None:
    last = train(world, tmp_path / "out", joint__steps=2, **FIT)["last"]
    fusion = fusion_of(tmp_path / "out")
    assert by_command(world, tmp_path) == pytest.approx(fusion.weights, rel=0.02)
    assert {name: last[f"fit_weight_{name}"] for name in fusion.weights} == fusion.weights
    assert 0 <= last["fit_without_gain"] < 1
    assert last["fit_nats_after"] < last["fit_nats_before"]


def test_what_answers_ranks_by_the_fitted_weights(world: World, tmp_path: Path) -> None:
    train(world, tmp_path, joint__steps=1, **FIT)
    retriever = Retriever.open(tmp_path / "checkpoint", world.memory, world.index)
    weights_of = fusion_of(tmp_path).weights
    [hit, *_] = retriever.hits(["Who is the mayor of Aldwyn?"], 3)[0]
    assert set(hit.contributions) == {name for name, weight in weights_of.items() if weight}
    assert hit.score == pytest.approx(sum(hit.contributions.values()), rel=1e-4)


def test_a_fit_changes_the_score_alone(world: World, tmp_path: Path) -> None:
    train(world, tmp_path / "without", joint__steps=2, joint__fit_share=0.4)
    train(world, tmp_path / "with", joint__steps=2, **FIT)
    one, other = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert fusion_of(tmp_path / "without") == Fusion()
    assert not any(name.startswith("fit_") for name in metrics(tmp_path / "without")[2])


def test_it_fits_after_each_switch_and_after_the_last_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    report = train(world, tmp_path / "whole", **REFRESHED)
    lines = metrics(tmp_path / "whole")
    assert [step for step, values in lines.items() if "fit_seconds" in values] == [4, 7, 8]
    assert lines[4]["fit_weight_bm25"] != lines[7]["fit_weight_bm25"] != lines[8]["fit_weight_bm25"]
    # The version of a snapshot after the last step is fitted to when it is ready.
    assert report["last_fit"]["memory_version"] == 3
    assert fusion_of(tmp_path / "whole").weights["bm25"] == report["last_fit"]["fit_weight_bm25"]
    # A run that dies after the first fit ends with the same numbers.
    with monkeypatch.context() as patch:
        patch.setattr(
            JointStage, "announcement", lambda self, step: 1 / (6 - step) and self.versions.announcement(step)
        )
        with pytest.raises(ZeroDivisionError):
            train(world, tmp_path / "cut", **REFRESHED)
    train(world, tmp_path / "cut", **REFRESHED)
    assert fusion_of(tmp_path / "cut") == fusion_of(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_memory_that_is_encoded_after_the_last_step_is_fitted_to(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    settings = FIT | {"joint__train_compressor": "true", "joint__refresh__final": "true", "joint__steps": 2}
    output = tmp_path / "out"
    report = train(world, output, **settings)
    note, last = report["last_fit"], report["last"]
    assert (note["memory_version"], note["fusion"]) == (1, fusion_of(output).model_dump())
    assert note["fit_weight_bm25"] != last["fit_weight_bm25"]
    encoded = replace(world, memory=output / "memory-v1", index=output / "index-v1")
    assert by_command(encoded, tmp_path) == pytest.approx(fusion_of(output).weights, rel=0.02)
    # Killed before the CHECKPOINT had these weights, the run ends with the same.
    replace_fusion(output / "checkpoint", Fusion(weights={"memory": 3}))
    (output / "report.json").unlink()
    assert train(world, output, **settings)["last_fit"] == note
    assert fusion_of(output).model_dump() == note["fusion"]


def test_the_next_step_uses_the_fitted_weights(world: World, tmp_path: Path) -> None:
    stage = stage_of(world, tmp_path, joint__steps=1)
    assert stage.micro_batches(0, 0, 1)[0].features is None
    figures = stage.after_step(0, stage._begun())
    batch = stage.micro_batches(0, 0, 1)[0]
    assert batch.features is not None
    assert stage.module.model.settings.fusion.weights["bm25"] == figures["fit_weight_bm25"] > 0  # type: ignore[union-attr]
    restored = stage_of(world, tmp_path / "other")
    restored.restore(json.loads(json.dumps(stage.state())))
    again = restored.micro_batches(0, 0, 1)[0].features
    assert again is not None
    assert torch.equal(again, batch.features)


def test_weights_stay_where_no_row_helps(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def misled(retriever: Retriever, question: Question, pool: list[int]) -> Scored:
        return Scored(question.question_id, tuple(pool), (-2.0,) * len(pool), -1.0)

    monkeypatch.setattr("training.score_fit.fold.score_pool", misled)
    last = train(world, tmp_path, joint__steps=1, **FIT)["last"]
    assert fusion_of(tmp_path) == Fusion()
    assert (last["fit_without_gain"], last["fit_weight_memory"], last["fit_weight_bm25"]) == (1.0, 1.0, 0.0)
    assert "fit_nats_after" not in last
    assert "the weights of the fused score stay as they are: utilities of" in caplog.text


def test_weights_stay_where_every_source_ranks_the_rows_that_help_below_others(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bm25 = Bm25.of_memory(MemoryStore.open(world.memory))

    def last(retriever: Retriever, question: Question, pool: list[int]) -> Scored:
        queries = Queries([question.question], [()], retriever.queries([question.question]))
        scores = zip(bm25.score(queries, [pool])[0], retriever.memory_ranker.score(queries, [pool])[0], strict=True)
        worst = min(zip(scores, pool, strict=True))[1]
        return Scored(question.question_id, tuple(pool), tuple(-1.0 + (row == worst) for row in pool), -1.0)

    monkeypatch.setattr("training.score_fit.fold.score_pool", last)
    assert train(world, tmp_path, joint__steps=1, **FIT)["last"]["fit_without_gain"] == 0
    assert fusion_of(tmp_path) == Fusion()
    assert "the best weight of each of memory, bm25 is 0" in caplog.text


def test_with_shuffled_answers_the_fold_is_shuffled_too(world: World, tmp_path: Path) -> None:
    def fold(**values: object) -> list[Question]:
        return fitted_questions(load(None, world.sets(tmp_path, **FIT | values)[1::2]))

    own, shuffled = fold(), fold(joint__shuffle_answers="true")
    assert [q.question_id for q in own] == [q.question_id for q in shuffled]
    assert all(one.answers != other.answers for one, other in zip(own, shuffled, strict=True))
    inside = {q.question_id for q in fold_of(read_questions(world.questions, "train"), 0.4)[0]}
    assert {q.question_id for q in own} <= inside


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint__fit_share": 0.0}, r"joint\.fit_share 0 keeps none of the \d+ training questions"),
        ({"joint__fit_share": 1e-9}, r"joint\.fit_questions is 8, and joint\.fit_share 1e-09 keeps none"),
        ({"joint__from_bm25": 0}, r"candidates come from memory: weights of several sources"),
        ({"joint__published_pool": "true"}, r"candidates come from published pools"),
        ({"joint__temperature": 0.1}, r"joint\.temperature is 0\.1, the fused score .* was made with 0\.02"),
        ({"index": ""}, r"index"),
    ],
)
def test_a_fit_that_could_only_fail_is_refused_before_the_first_step(
    world: World, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(world, tmp_path, **FIT | settings)


def test_a_feature_that_the_index_lacks_is_refused(world: World, tmp_path: Path) -> None:
    build_index(world.memory, tmp_path / "index", "Flat", words=False)
    with pytest.raises(InputError, match=r"joint\.from_bm25 is above 0 .* fitted with bm25, and .* has no such part"):
        train(world, tmp_path / "out", index=tmp_path / "index", **FIT)


def test_a_weight_that_the_fit_would_drop_is_refused(world: World, tmp_path: Path) -> None:
    fusion = Fusion(weights={"memory": 1, "dense": 2}, dense_model="0" * 64)
    start = Checkpoint.open(world.checkpoint)
    copy_with_score(start, tmp_path / "start", Score(), None, fusion=fusion, recipe={})
    with pytest.raises(InputError, match=r"has a weight for dense, and joint\.from_dense is 0"):
        train(replace(world, checkpoint=tmp_path / "start"), tmp_path / "out", **FIT)


def test_a_reader_that_has_trained_on_the_fold_is_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.checkpoint, tmp_path / "start")
    manifest = json.loads((tmp_path / "start" / "manifest.json").read_text())
    (tmp_path / "start" / "manifest.json").write_text(json.dumps(manifest | {"stage": "joint", "fit_share": 0.2}))
    with pytest.raises(InputError, match=r"joint\.fit_share is 0\.4, and an earlier joint stage .* kept 0\.2 of"):
        train(replace(world, checkpoint=tmp_path / "start"), tmp_path / "out", **FIT)


def test_a_reader_whose_likelihoods_are_not_finite_is_reported(world: World, tmp_path: Path) -> None:
    stage = stage_of(world, tmp_path, joint__steps=1)
    with torch.no_grad():
        stage.module.model.role_parameters("generator")[0].fill_(torch.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(InputError, match=r"utilities of question 'q-\d+': a likelihood is not finite"):
        stage.after_step(0, stage._begun())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_use_the_weights_of_rank_0(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = FIT | {"joint__fit_questions": 7, "joint__steps": 3, "joint__micro_batch": 1}
    with caplog.at_level(logging.INFO):
        train(world, tmp_path / "one", **values)
    shared = values | {"launch__zero_stage": 3, "launch__zero3_keep_whole_below": 0}
    said = ranks.train(2, [world.sets(tmp_path / "two", **shared)[1::2]], tmp_path)
    expected = f"fit: weights of the fused score are {fusion_of(tmp_path / 'two').weights}"
    assert all(f"rank {rank}: {expected}" in words for rank, words in enumerate(said))
    # Sums in another order, over three updates.
    assert fusion_of(tmp_path / "two").weights == pytest.approx(fusion_of(tmp_path / "one").weights, rel=0.02)
