"""Joint training in one process: what trains, refreshes, resuming after a kill, and refusals."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara.config.load import load
from clara.config.refresh import Refresh
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.manifest import manifest_hash, read_manifest
from tests.helpers import warm
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.lines import read
from training.refresh.job import expected_fingerprint, fingerprint_of
from training.refresh.policy import policy_of
from training.refresh.process import ProcessWorker
from training.run.recipe import recipe
from training.stages.joint_stage import JointStage

ROLES = ("compressor", "query_reasoner", "generator")


def train(world: World, output: Path, **values: object) -> dict[str, object]:
    assert joint.main(["--launcher", "local", *world.sets(output, **values)]) == 0
    report: dict[str, object] = json.loads((output / "report.json").read_text())
    return report


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    roles = read_manifest(checkpoint)["roles"]
    found = {}
    for role in ROLES:
        tensors = load_file(checkpoint / roles[role] / "adapter_model.safetensors")
        found |= {f"{role}.{name}": tensor for name, tensor in tensors.items()}
    return found


def moved(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    return {role for role in ROLES if any(not torch.equal(old[n], new[n]) for n in old if n.startswith(f"{role}."))}


def equal(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"query_reasoner", "generator"}),
        ({"joint__train_generator": "false"}, {"query_reasoner"}),
        (
            {"joint__train_compressor": "true", "joint__right_memory_share": 0.5},
            {"compressor", "query_reasoner", "generator"},
        ),
        # With the gradient cut at top-k, nothing reaches the query reasoner: the control stays where it began.
        ({"joint__cut_gradient": "true"}, {"generator"}),
    ],
)
def test_only_what_is_named_changes(
    world: World, tmp_path: Path, settings: dict[str, object], expected: set[str]
) -> None:
    train(world, tmp_path, joint__steps=2, **settings)
    assert moved(world.checkpoint, tmp_path / "checkpoint") == expected


def test_run_is_repeatable_and_then_up_to_date(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(world, tmp_path / "a", joint__steps=3)
    train(world, tmp_path / "b", joint__steps=3)
    assert equal(tmp_path / "a/checkpoint", tmp_path / "b/checkpoint")
    capsys.readouterr()
    train(world, tmp_path / "a", joint__steps=3)
    assert "up to date" in capsys.readouterr().out


def test_micro_batches_do_not_change_the_gradient(world: World, tmp_path: Path) -> None:
    for size in (1, 4):
        train(world, tmp_path / str(size), joint__steps=1, joint__micro_batch=size, joint__train_compressor="true")
    one, four = weights(tmp_path / "1/checkpoint"), weights(tmp_path / "4/checkpoint")
    start = weights(world.checkpoint)
    for name, tensor in one.items():
        # AdamW's first update has the gradient's sign at full rate, so that noise near zero may flip: all but few must
        # agree.
        agree = ((tensor - start[name]) - (four[name] - start[name])).abs() < 1e-5
        assert agree.float().mean() > 0.99, name


FIXED = {
    "joint__train_compressor": "true",
    "joint__steps": 8,
    "joint__refresh__policy": "full",
    "joint__refresh__switch": "fixed",
    "joint__refresh__start_step": 2,
    "joint__refresh__delta_steps": 2,
    "joint__refresh__every_steps": 3,
    "joint__refresh__keep_versions": 3,
}


def test_snapshots_are_due_after_the_start_and_then_regularly() -> None:
    def due(**settings: object) -> list[int]:
        return [n for n in range(12) if policy_of(Refresh.model_validate({"policy": "full", **settings})).due(n)]

    assert due(start_step=2, every_steps=4) == [2, 6, 10]
    assert due(start_step=3) == [3]
    assert due(start_step=2, policy="none") == []


def test_fixed_switch_after_the_next_snapshot_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"delta_steps is 5, every_steps 3"):
        train(world, tmp_path, **FIXED | {"joint__refresh__delta_steps": 5})


@pytest.mark.parametrize("inline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_refresh_switches_at_the_announced_step(
    world: World, tmp_path: Path, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inline:
        monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    report = train(world, tmp_path, **FIXED)
    assert report["versions_by_step"] == [
        {"version": 0, "first_step": 1, "last_step": 4},
        {"version": 1, "first_step": 5, "last_step": 7},
        {"version": 2, "first_step": 8, "last_step": 8},
    ]
    metrics = read(next(tmp_path.glob("run-*")) / "metrics.jsonl")
    assert [v["used_memory_version"] for v in metrics.values()] == [0, 0, 0, 0, 1, 1, 1, 2]
    assert [step for step, v in metrics.items() if "refresh_seconds" in v] == [4, 7]
    assert [step for step, v in metrics.items() if v["refreshing"]] == [3, 4, 6, 7]
    cost, made = report["refresh_cost"], report["refreshes"]
    assert isinstance(cost, dict)
    assert isinstance(made, list)
    assert cost["refreshes"] == 3
    assert cost["seconds"] == pytest.approx(sum(r["seconds"] for r in made))
    sizes = [f["bytes"] for n in (1, 2, 3) for f in read_manifest(tmp_path / f"memory-v{n}")["files"]]
    assert cost["bytes"] == sum(r["bytes"] for r in made) == sum(sizes)
    seconds = sum(v["step_seconds"] for v in metrics.values())
    assert cost["compute_share"] == pytest.approx(cost["seconds"] / (cost["seconds"] + seconds))
    assert report["blocked_seconds"] == pytest.approx(sum(v["blocked_seconds"] for v in metrics.values()))
    # The snapshot after the last step is made too, though no step is left to use it, and fits the CHECKPOINT.
    assert report["memory_lag_steps"] == 0
    stores = [
        MemoryStore.open(world.memory),
        *(MemoryStore.open(tmp_path / f"memory-v{n}", verify=True) for n in (1, 2, 3)),
    ]
    assert len({store.fingerprint for store in stores}) == 4
    assert all(store.row_ids.tolist() == stores[0].row_ids.tolist() for store in stores)
    assert read_manifest(tmp_path / "memory-v2")["parent"] == stores[1].hash
    assert read_manifest(tmp_path / "index-v1")["memory"] == stores[1].hash


def test_final_memory_fits_the_final_checkpoint(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    report = train(world, tmp_path, joint__train_compressor="true", joint__refresh__final="true", joint__steps=2)
    memory = Path(str(report["memory"]))
    assert memory == tmp_path / "memory-v1"
    expected = expected_fingerprint(tmp_path / "checkpoint", "", fingerprint_of(memory))
    assert MemoryStore.open(memory, accept=[expected]).fingerprint == expected.hash


def test_a_compressor_unchanged_since_the_snapshot_needs_no_final_refresh(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    settings = FIXED | {
        "joint__refresh__every_steps": 0,
        "joint__compressor_steps": 2,
        "joint__refresh__final": "true",
        "joint__steps": 5,
    }
    report = train(world, tmp_path, **settings)
    assert report["versions_by_step"] == [
        {"version": 0, "first_step": 1, "last_step": 4},
        {"version": 1, "first_step": 5, "last_step": 5},
    ]
    assert report["memory_lag_steps"] == 0
    assert moved(world.checkpoint, tmp_path / "checkpoint") == {"compressor", "query_reasoner", "generator"}
    memory = tmp_path / "memory-v1"
    assert report["memory"] == str(memory)
    expected = expected_fingerprint(tmp_path / "checkpoint", "", fingerprint_of(memory))
    assert MemoryStore.open(memory, accept=[expected]).fingerprint == expected.hash


def test_without_final_the_report_says_that_memory_lags(world: World, tmp_path: Path) -> None:
    report = train(world, tmp_path, joint__train_compressor="true", joint__steps=2)
    assert report["memory_lag_steps"] == 2
    assert report["memory"] == str(world.memory)


def wait_for(path: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_run_ends_like_an_undisturbed_one(world: World, tmp_path: Path) -> None:
    settings = FIXED | {"joint__steps": 10, "joint__refresh__final": "true"}
    undisturbed = train(world, tmp_path / "a", **settings)
    for state in ("step-00000002", "step-00000004", "step-00000008"):
        process = warm.start(joint.main, ["--launcher", "local", *world.sets(tmp_path / "b", **settings)])
        run = tmp_path / "b" / next(iter((tmp_path / "a").glob("run-*"))).name
        wait_for(run / "run_state" / state / "state.json")
        warm.kill(process)
        assert process.exitcode == -signal.SIGKILL
    report = train(world, tmp_path / "b", **settings)
    assert equal(tmp_path / "a/checkpoint", tmp_path / "b/checkpoint")
    assert report["versions_by_step"] == undisturbed["versions_by_step"]
    for number in (1, 2, 3):
        one, other = (
            MemoryStore.open(tmp_path / f"a/memory-v{number}"),
            MemoryStore.open(tmp_path / f"b/memory-v{number}"),
        )
        assert one.fingerprint == other.fingerprint
        assert (one.memory(one.row_ids) == other.memory(other.row_ids)).all()


@pytest.mark.slow
def test_refresh_that_dies_is_tried_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = ProcessWorker.start, []

    def start_and_kill_the_first(self, job, log):  # type: ignore[no-untyped-def]
        ticket = real(self, job, log)
        started.append(ticket)
        if len(started) == 1:
            ticket.process.kill()
        return ticket

    monkeypatch.setattr(ProcessWorker, "start", start_and_kill_the_first)
    report = train(world, tmp_path, **FIXED | {"joint__steps": 5, "joint__refresh__every_steps": 0})
    assert len(started) == 2
    assert report["versions_by_step"][-1]["version"] == 1  # type: ignore[index]


def test_refresh_that_always_dies_leaves_training_on_the_old_version(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = ProcessWorker.start

    def start_and_kill(self, job, log):  # type: ignore[no-untyped-def]
        ticket = real(self, job, log)
        ticket.process.kill()
        return ticket

    monkeypatch.setattr(ProcessWorker, "start", start_and_kill)
    report = train(world, tmp_path, **FIXED | {"joint__steps": 5, "joint__refresh__every_steps": 0})
    assert report["versions_by_step"] == [{"version": 0, "first_step": 1, "last_step": 5}]
    assert "killed by SIGKILL" in caplog.text
    assert "given up; training stays on version 0" in caplog.text


def test_memory_of_another_compressor_is_refused(world: World, tmp_path: Path) -> None:
    train(world, tmp_path / "a", joint__train_compressor="true", joint__steps=1)
    with pytest.raises(InputError, match=r"compressor: expected .* found"):
        train(world, tmp_path / "b", checkpoint=tmp_path / "a/checkpoint")


def test_settings_at_their_defaults_are_not_part_of_the_recipe(world: World, tmp_path: Path) -> None:
    def settings(**values: object) -> dict[str, Any]:
        arguments = world.sets(tmp_path, **values)[1::2]
        found: dict[str, Any] = recipe(load(None, arguments))["settings"]["joint"]
        return found

    assert not settings().keys() & {"refresh", "on_nonfinite", "evaluate_answer_tokens", "evaluate_fresh"}
    changed = settings(joint__refresh__rerank="true", joint__on_nonfinite="skip")
    assert (changed["refresh"], changed["on_nonfinite"]) == ({"rerank": True}, "skip")


def test_who_computes_and_how_long_one_waits_is_the_same_run(world: World, tmp_path: Path) -> None:
    same = {
        "joint__refresh__num_cpus": 0.5,
        "joint__refresh__num_gpus": 1,
        "joint__refresh__wait_seconds": 5,
        "joint__refresh__max_attempts": 9,
        "joint__refresh__max_seconds": 7,
        "joint__refresh__keep_versions": 0,
        "joint__checkpoint_every": 3,
        "joint__micro_batch": 1,
        "launch__num_workers": 4,
        "retrieval__search_shards": 2,
    }
    wanted = recipe(load(None, world.sets(tmp_path)[1::2]))
    assert recipe(load(None, world.sets(tmp_path, **same)[1::2])) == wanted
    assert recipe(load(None, world.sets(tmp_path, joint__steps=7)[1::2])) != wanted


def test_a_run_is_taken_up_by_other_micro_batches(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(world, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(JointStage, "announcement", lambda self, step: 1 / (4 - step))  # it dies in the fifth step
        with pytest.raises(ZeroDivisionError):
            train(world, tmp_path / "cut")
    report = train(world, tmp_path / "cut", joint__micro_batch=1, joint__checkpoint_every=3)
    assert report["steps"] == 6
    (run,) = (tmp_path / "cut").glob("run-*")
    assert (run / "metrics.jsonl").read_text().count('"step": 5') == 1
    one, other = weights(tmp_path / "whole/checkpoint"), weights(tmp_path / "cut/checkpoint")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3


def test_another_run_of_other_settings_is_reported(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(world, tmp_path, joint__steps=1)
    assert "another run" not in caplog.text
    train(world, tmp_path, joint__steps=2, joint__on_nonfinite="skip")
    warning = (
        "another run of other settings (joint.on_nonfinite stop → skip, joint.steps 1 → 2) "
        f"is in {tmp_path}; this one begins at step 0"
    )
    assert warning in caplog.text
    # Not where it resumes, or is done.
    caplog.clear()
    train(world, tmp_path, joint__steps=2, joint__on_nonfinite="skip")
    assert "another run" not in caplog.text


def test_relative_path_in_a_submitted_job_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match=r"memory is 'artefacts/memory'.*absolute"):
        train(world, tmp_path, memory="artefacts/memory")


def test_gpu_that_is_not_there_is_refused(world: World, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=r"launch\.gpu is true"):
        train(world, tmp_path, launch__gpu="true")


def test_dry_run_writes_nothing(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert joint.main(["--dry-run", *world.sets(tmp_path / "out")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["inputs"]["memory"] == manifest_hash(world.memory)
    assert not (tmp_path / "out").exists()


def test_evaluation_during_training(world: World, tmp_path: Path) -> None:
    report = train(world, tmp_path, joint__steps=2, joint__evaluate_every=2, joint__evaluate_questions=8)
    last = report["last"]
    assert isinstance(last, dict)
    assert 0 <= last["held_out_recall_at_1"] <= last["held_out_recall_at_5"] <= last["held_out_recall_at_20"] <= 1
    assert last["held_out_right_nats"] > 0


def test_held_out_pools_are_ranked_where_training_searches(world: World, tmp_path: Path) -> None:
    settings = {"joint__evaluate_pools": "true", "joint__evaluate_fresh": "true"}
    last = train(world, tmp_path, joint__steps=2, joint__evaluate_every=2, joint__evaluate_questions=8, **settings)[
        "last"
    ]
    assert isinstance(last, dict)
    assert "held_out_recall_at_5" not in last
    # Nothing was re-encoded and the compressor stood still, so what is fresh is what is stored.
    for depth in (1, 5, 20):
        assert 0 <= last[f"held_out_pool_recall_at_{depth}"] == last[f"held_out_fresh_pool_recall_at_{depth}"] <= 1
