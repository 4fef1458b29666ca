"""Every policy with a trained compressor: gradients equal a naive step in float64; `stop` blocks training."""

import dataclasses
import json
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from clara.config.model import Backbone
from clara.config.refresh import Refresh
from clara.config.tree import Config
from clara.data.questions import read_questions
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint
from clara.model.model import ClaraModel
from tests.helpers.joint_world import Inline, World
from tests.helpers.naive import assert_same, gradients, naive_joint_loss
from training import joint
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.refresh.job import RefreshResult
from training.refresh.policy import POLICIES as POLICY_TABLE
from training.refresh.versions import Versions
from training.run.report import figures
from training.stages.joint_stage import JointStage

STEP = 3
POLICIES: dict[str, dict[str, object]] = {
    "none": {},
    "rerank": {"rerank": True},
    "full": {"policy": "full"},
    "full_and_rerank": {"policy": "full", "rerank": True},
    "incremental": {"policy": "incremental", "rows": 14},
    "incremental_and_rerank_of_the_older": {"policy": "incremental", "rows": 14, "rerank": True, "rerank_lag_steps": 1},
}


def move(model: ClaraModel, seed: int) -> None:
    """Two updates, as it were."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.role_parameters("compressor"):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))


def stage(world: World, folder: Path, model: ClaraModel, refresh: dict[str, object]) -> JointStage:
    config = Config.model_validate(
        {
            "checkpoint": str(world.checkpoint),
            "memory": str(world.memory),
            "index": str(world.index),
            "backbone": {"dtype": "float32"},
            "retrieval": {"factory": "Flat"},
            "output": str(folder),
            "joint": {
                "questions_per_step": 4,
                "micro_batch": 4,
                "num_candidates": 8,
                "num_selected": 3,
                "from_index": 4,
                "from_bm25": 2,
                "steps": 9,
                "temperature": 0.1,
                "train_compressor": True,
                "refresh": {"start_step": 2, **refresh},
            },
        }
    )
    (folder / "run").mkdir()
    versions = Versions(config, folder, folder / "run", Inline(), 1)
    made = JointStage(model, read_questions(world.questions, "train"), config, versions)
    made.begin(LocalEngine(torch.nn.Linear(1, 1), [(0.1, [torch.nn.Parameter(torch.zeros(1))])], made.optimiser))
    return made


@pytest.mark.parametrize("policy", POLICIES)
def test_all_gradients_equal_those_of_a_naive_step(
    world: World, tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a snapshot, a refresh and a switch, with training of the compressor in between; the naive step encodes all.

    The constant that a candidate is scored on is worked out here from the policy's meaning: what the compressor of the
    start, of the snapshot, or of now makes of the text, rounded as it is stored.
    """
    settings = POLICIES[policy]
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    start = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    made = stage(world, tmp_path, model, settings)
    move(model, 1)
    snapshot = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    move(snapshot, 1)
    made.micro_batches(0, 0, 1)  # whose candidates count as used
    made._refresh(2, cosine=1.0)
    made.before_step(2, made.announcement(2))
    move(model, 2)
    model.double()
    (batch,) = made.micro_batches(STEP, 0, 1)
    pools = pools_of(made, batch.candidates)

    refreshed = {*made._store.row_ids.tolist()} if settings.get("policy") == "full" else set()
    if settings.get("policy") == "incremental":
        young = made.versions.ages.lag(made._store.row_ids, STEP) == 1
        refreshed = {*made._store.row_ids[young].tolist()}
        assert len(refreshed) == 14
    used = {row for pool in pools for row in pool}
    if "incremental" in policy:
        assert used & refreshed
        assert used - refreshed
    memory = torch.zeros_like(batch.memory)
    for row, (pool, texts) in enumerate(zip(pools, batch.candidates, strict=True)):
        for place, (candidate, text) in enumerate(zip(pool, texts, strict=True)):
            lag = 1 if candidate in refreshed else 3
            encoder = snapshot if candidate in refreshed else start
            if settings.get("rerank") and lag > int(settings.get("rerank_lag_steps", 0)):  # type: ignore[call-overload]
                encoder = model
            value = encoder.compress([text])[0].float()
            if encoder is not model:
                value = value.half().float()
            memory[row, place] = value
    # Batches of other shapes give other last bits, and half precision rounds them to a neighbour at times.
    torch.testing.assert_close(batch.memory, memory, atol=4e-3, rtol=4e-3)

    batch = dataclasses.replace(batch, memory=batch.memory.double())
    output = made.module(batch, batch.weight, 4)
    output.loss.backward()
    ours = gradients(model)
    assert any(g.any() for name, g in ours.items() if "compressor" in name)
    naive = naive_joint_loss(model, batch, made._settings)
    naive.backward()
    assert output.loss.item() == pytest.approx(naive.item(), abs=1e-10)
    assert_same(ours, gradients(model))


def test_the_table_has_every_policy_of_the_configuration() -> None:
    assert {*POLICY_TABLE} == {*get_args(Refresh.model_fields["policy"].annotation)}


def pools_of(made: JointStage, candidates: list[list[list[int]]]) -> list[list[int]]:
    """Rows by their texts' tokens."""
    rows = made._store.row_ids.tolist()
    by_text = {tuple(ids): row for row, ids in zip(rows, made.candidates.token_ids(rows, made._model), strict=True)}
    return [[by_text[tuple(text)] for text in pool] for pool in candidates]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"policy": "incremental", "switch": "fixed"}, "switch = 'fixed' switches delta_steps after a snapshot"),
        ({"share": 0}, r"refresh\.share"),
    ],
)
def test_what_does_not_go_together_is_refused(
    world: World, tmp_path: Path, values: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        joint.main(
            [
                "--launcher",
                "local",
                *world.sets(tmp_path, **{f"joint__refresh__{name}": v for name, v in values.items()}),
            ]
        )


# --- training waits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["full", "incremental"])
def test_with_stop_the_step_after_a_snapshot_has_its_version(
    world: World, tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    values = {"policy": policy, "rows": 15, "switch": "stop", "start_step": 1, "every_steps": 2, "keep_versions": 9}
    sets = world.sets(
        tmp_path,
        joint__train_compressor="true",
        joint__steps=6,
        **{f"joint__refresh__{n}": v for n, v in values.items()},
    )
    assert joint.main(["--launcher", "local", *sets]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(s["version"], s["first_step"]) for s in report["versions_by_step"]] == [(0, 1), (1, 2), (2, 4), (3, 6)]
    run = next(tmp_path.glob("run-*"))
    switches = [json.loads(line) for line in (run / "switches-rank0.jsonl").read_text().splitlines()]
    assert [(s["number"], s["first_step"], s["snapshot_step"]) for s in switches] == [(1, 2, 1), (2, 4, 3), (3, 6, 5)]
    metrics = read(run / "metrics.jsonl")
    assert [v["staleness_steps"] for v in metrics.values()] == [0, 0, 1, 0, 1, 0]
    # It is the waiting that is counted as blocked.
    assert all(metrics[step]["blocked_seconds"] >= metrics[step]["refresh_seconds"] for step in (1, 3, 5))
    assert report["blocked_share"] > 0.2


def test_waiting_is_part_of_the_whole(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Inline):
        def result(self, timeout_seconds: float) -> RefreshResult | None:
            time.sleep(4)
            return super().result(timeout_seconds)

    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Slow)
    values = {"policy": "full", "switch": "stop", "start_step": 1}
    sets = world.sets(
        tmp_path,
        joint__train_compressor="true",
        joint__steps=2,
        **{f"joint__refresh__{n}": v for n, v in values.items()},
    )
    assert joint.main(["--launcher", "local", *sets]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    metrics = read(next(tmp_path.glob("run-*")) / "metrics.jsonl")
    assert report["seconds"] > report["blocked_seconds"] > 4
    assert metrics[1]["step_seconds"] > metrics[1]["blocked_seconds"] > 4
    assert report["blocked_share"] == pytest.approx(report["blocked_seconds"] / report["seconds"])
    assert metrics[2]["blocked_share"] == pytest.approx(
        report["blocked_share"], rel=0.05
    )  # what MLflow gets at each step
    assert figures(report)["run.blocked_share"] == report["blocked_share"] < 1
    assert figures(report)["run.waited_after_last_step_seconds"] == report["waited_after_last_step_seconds"]


class Never(Inline):
    """Is not ready as long as anybody waits in vain."""

    def result(self, timeout_seconds: float) -> None:
        return None

    def stop(self) -> None:
        """Nothing runs."""


def test_stop_waits_no_longer_than_its_limit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Never)
    values = {"policy": "full", "switch": "stop", "start_step": 1, "wait_seconds": 0.05}
    sets = world.sets(
        tmp_path,
        joint__train_compressor="true",
        joint__steps=3,
        **{f"joint__refresh__{n}": v for n, v in values.items()},
    )
    assert joint.main(["--launcher", "local", *sets]) == 0
    assert "version 1 is not ready after 0 s; training continues without it" in caplog.text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["versions_by_step"] == [{"version": 0, "first_step": 1, "last_step": 3}]
    assert MemoryStore.open(report["memory"]).row_ids.size == 40
