"""Joint training as Ray ranks with ZeRO: equal to one process, refreshed beside it, alive after a rank's death."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from clara.config.tree import Config
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.manifest import MANIFEST, read_manifest
from tests.helpers import ranks
from tests.helpers.joint_world import World, reached
from tests.helpers.ray_cluster import below
from training import joint
from training.launch.cluster_shares import cpus_of_rank, scaling
from training.refresh.job import expected_fingerprint, fingerprint_of

# Float32 sums in another order, over a few AdamW updates of 1e-3: weights move by up to 4e-3, and differ by less than a
# thousandth of that.
TOLERANCE = 4e-6
TIMEOUT_SECONDS = 900
SETTINGS: dict[str, object] = {"joint__train_compressor": "true", "joint__steps": 4}


def command(world: World, output: Path, **values: object) -> list[str]:
    return [sys.executable, joint.__file__, *world.sets(output, **SETTINGS | values)]


def train(world: World, output: Path, **values: object) -> dict[str, object]:
    done = subprocess.run(command(world, output, **values), capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads((output / "report.json").read_text())
    return report


def largest_difference(first: Path, second: Path) -> float:
    largest = 0.0
    for role in ("compressor", "query_reasoner", "generator"):
        one, other = (
            load_file(p / read_manifest(p)["roles"][role] / "adapter_model.safetensors") for p in (first, second)
        )
        assert one.keys() == other.keys()
        largest = max(largest, *(float((one[name] - other[name]).abs().max()) for name in one))
    return largest


def config(**launch: object) -> Config:
    return Config.model_validate({"launch": launch, "joint": {"refresh": {"policy": "full", "num_cpus": 1.0}}})


def test_ranks_share_what_a_refresh_leaves() -> None:
    assert cpus_of_rank(config(num_workers=2), 2.0) == 0.5
    assert cpus_of_rank(config(num_workers=2), 16.0) == 1.0
    with pytest.raises(InputError, match="more than the cluster's 4 cores"):
        cpus_of_rank(config(num_workers=2, cpus_per_worker=2), 4.0)


def test_gpu_that_the_cluster_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"launch\.gpu is true with 2 workers, the cluster has 1 GPUs"):
        scaling(config(num_workers=2, gpu=True), {"CPU": 8.0, "GPU": 1.0})
    refreshed = {"train_compressor": True, "refresh": {"policy": "full", "num_gpus": 1.0}}
    with pytest.raises(InputError, match=r"joint\.refresh\.num_gpus is 1, the cluster has 0 GPUs"):
        scaling(Config.model_validate({"joint": refreshed}), {"CPU": 8.0})


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
def test_two_ranks_equal_one_process(world: World, tmp_path: Path) -> None:
    # The other stages, and more ranks, are test_zero's, which starts ranks without Ray.
    settings: dict[str, object] = {"joint__compressor_steps": 2}
    assert joint.main(world.sets(tmp_path / "one", launch__launcher="local", **SETTINGS | settings)) == 0
    # Relative to where the command is typed: ranks run elsewhere.
    train(world, Path(os.path.relpath(tmp_path / "two")), launch__launcher="ray", launch__zero_stage=2, **settings)
    assert largest_difference(world.checkpoint, tmp_path / "one/checkpoint") > 100 * TOLERANCE
    assert largest_difference(tmp_path / "one/checkpoint", tmp_path / "two/checkpoint") < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_the_score_is_fitted_by_ranks_and_to_the_last_encoding(world: World, tmp_path: Path) -> None:
    values = {"joint__fit_questions": 7, "joint__fit_share": 0.4, "joint__refresh__final": "true", "joint__steps": 2}
    report = train(world, tmp_path, **values, launch__num_workers=2, joint__micro_batch=1)
    last, fitted = report["last"], report["last_fit"]
    assert isinstance(last, dict)
    assert isinstance(fitted, dict)
    assert {"fit_weight_memory", "fit_weight_bm25"} < last.keys()
    assert fitted["memory_version"] == 1
    assert read_manifest(tmp_path / "checkpoint")["model"]["fusion"] == fitted["fusion"]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_bad_input_that_only_ranks_find_is_reported_as_bad_input(world: World, tmp_path: Path) -> None:
    values = {"joint__from_index": 0, "joint__from_bm25": 0, "launch__launcher": "ray", "launch__max_failures": 0}
    done = subprocess.run(command(world, tmp_path, **values), capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 2
    assert re.search(r"^error: question \d+ of step 1: no candidate at all", done.stderr, re.MULTILINE)


@pytest.mark.release
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_ranks_that_diverge_stop_in_one_line_and_do_not_start_again(world: World, tmp_path: Path) -> None:
    values = {
        "launch__launcher": "ray",
        "joint__optimiser__learning_rate": 1e30,
        "joint__from_bm25": 0,
        "joint__checkpoint_every": 1,
    }
    done = subprocess.run(command(world, tmp_path, **values), capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 2, done.stderr
    assert re.search(r"^error: joint: the loss is nan at step 2; lower the learning rate", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    (run,) = tmp_path.glob("run-*")
    for rank in (0, 1):
        assert (run / f"log-rank{rank}.txt").read_text().count(f"rank {rank} of 2: process") == 1


@pytest.mark.slow
@pytest.mark.timeout(4 * TIMEOUT_SECONDS)
def test_refresh_without_room_and_a_killed_rank_leave_the_run_as_if_undisturbed(world: World, tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "joint__steps": 10,
        "joint__refresh__policy": "full",
        "joint__refresh__num_cpus": 0.5,
        "joint__refresh__switch": "fixed",
        "joint__refresh__start_step": 3,
        "joint__refresh__delta_steps": 3,
        "joint__refresh__final": "true",
    }
    # Without Ray, which a run of the same ranks does not notice; its last re-encoding is not compared.
    ranks.train(2, [world.sets(tmp_path / "a", **SETTINGS | settings)[1::2]], tmp_path)
    undisturbed = json.loads((tmp_path / "a/report.json").read_text())
    process = subprocess.Popen(
        command(world, tmp_path / "b", **settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    name = next((tmp_path / "a").glob("run-*")).name
    run = tmp_path / "b" / name
    deadline = time.monotonic() + TIMEOUT_SECONDS

    def wait_for(there: Callable[[], object]) -> None:
        while not there():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

    # The disk is full where the refresh writes. Its next attempt has a separate process; training waits for it ahead of
    # the fixed step.
    wait_for(lambda: below(psutil.Process(process.pid), "ray::Refresher"))
    for refresher in below(psutil.Process(process.pid), "ray::Refresher"):
        refresher.rlimit(psutil.RLIMIT_FSIZE, (4096, psutil.RLIM_INFINITY))
    log = run / "log-rank0.txt"
    wait_for(lambda: "try 1 of version 1 failed" in log.read_text())
    assert "cannot be written (File too large)" in log.read_text()
    wait_for(lambda: reached(run, 4))
    rank = int(re.findall(r"process (\d+)", (run / "log-rank1.txt").read_text())[-1])
    os.kill(rank, signal.SIGKILL)

    def refreshers() -> set[int]:
        return {worker.pid for worker in below(psutil.Process(process.pid), "ray::Refresher")}

    # The last re-encoding has a separate actor too, as that of rank 0 ended with it.
    while not (tmp_path / "b/checkpoint" / MANIFEST).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        before = refreshers()
        time.sleep(0.1)
    wait_for(lambda: refreshers() - before)
    assert process.wait(timeout=TIMEOUT_SECONDS) == 0
    assert json.loads((run / "refresh-v2.json").read_text())["tries"] == 1
    assert "resuming joint after step" in (run / "log-rank1.txt").read_text()
    report = json.loads((tmp_path / "b/report.json").read_text())
    assert report["versions_by_step"] == undisturbed["versions_by_step"]
    assert [span["version"] for span in report["versions_by_step"]] == [0, 1]
    assert largest_difference(tmp_path / "a/checkpoint", tmp_path / "b/checkpoint") < TOLERANCE
    for output in ("a", "b"):
        # No step mixes versions: both ranks' last word on version 1 is the same step and manifest.
        lines = [(tmp_path / output / name / f"switches-rank{r}.jsonl").read_text().splitlines()[-1] for r in (0, 1)]
        first, second = ({k: v for k, v in json.loads(line).items() if k != "rank"} for line in lines)
        assert first == second
        assert first["first_step"] == 7
    memory = Path(report["memory"])
    expected = expected_fingerprint(tmp_path / "b/checkpoint", "", fingerprint_of(memory))
    assert MemoryStore.open(memory, accept=[expected], verify=True).row_ids.size
