"""Refreshes on another node: a corrupted shard, a refresh longer than its interval, resuming with more ranks."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clara.storage.manifest import MANIFEST
from tests.helpers import joint_world
from tests.helpers.artefacts import verify
from tests.helpers.joint_world import World, reached, weights
from tests.helpers.ray_cluster import Cluster, below
from training import joint
from training.loop.lines import read
from training.refresh.attempts import lost_tries

pytestmark = [pytest.mark.release, pytest.mark.timeout(2400)]
TIMEOUT_SECONDS = 900
STEPS, REFRESHER, RANK = 30, "ray::Refresher.run", "ray::RayTrainWorker"
# Two ranks sum in another order than one process, over updates of 1e-4: no weight is further off than half an update.
TOLERANCE = 5e-5
SETTINGS: dict[str, object] = {
    "joint__steps": STEPS,
    "joint__checkpoint_every": 2,
    "joint__optimiser__learning_rate": 1e-4,
    "joint__train_compressor": "true",
    # Steps long enough that the run is far from its end when something happens to it.
    "joint__questions_per_step": 24,
    "joint__micro_batch": 1,
    "joint__refresh__policy": "full",
    "joint__refresh__start_step": 2,
}


def begin(world: World, output: Path, cluster: Cluster, **values: object) -> "subprocess.Popen[str]":
    settings = SETTINGS | {"launch__launcher": "ray", "launch__max_failures": 0} | values
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    command = [sys.executable, joint.__file__, *world.sets(output, **settings)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(there: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def corrupt_unfinished(
    output: Path, worker: Callable[[], list[psutil.Process]], process: "subprocess.Popen[str]"
) -> tuple[int, psutil.Process]:
    """Flip a byte of a version's first shard before the version is finished; returns its number and worker."""
    for number in range(1, STEPS):
        memory = output / f"memory-v{number}"
        wait_for(lambda memory=memory: list(memory.glob("shard-*/memory.safetensors")), process)
        (refresher,) = worker()
        refresher.suspend()
        if not (memory / MANIFEST).exists():
            (shard, *_) = memory.glob("shard-*/memory.safetensors")
            with open(shard, "r+b") as stream:
                stream.seek(-1, 2)
                (last,) = stream.read(1)
                stream.seek(-1, 2)
                stream.write(bytes([last ^ 1]))
            return number, refresher
        refresher.resume()
    raise AssertionError("every version was finished before its first shard was seen")


def test_a_corrupt_shard_and_a_late_refresh_on_another_node(world: World, tmp_path: Path, cluster: Cluster) -> None:
    # Both ranks fill the head, so that the refresh runs on the other node.
    node = cluster.add_node(num_cpus=1)
    values: dict[str, object] = {
        "joint__refresh__every_steps": 3,
        "joint__refresh__switch": "asap",
        "joint__refresh__keep_versions": STEPS,
        # However late the second try is, the run is not over before.
        "joint__refresh__max_staleness_steps": 15,
        "joint__refresh__when_stale": "wait",
        "launch__cpus_per_worker": 1,
    }
    process = begin(world, tmp_path, cluster, **values)
    number, refresher = corrupt_unfinished(tmp_path, lambda: below(node, REFRESHER), process)
    (run,) = tmp_path.glob("run-*")
    log = run / "log-rank0.txt"
    # Later than its interval: training continues and logs it.
    wait_for(lambda: f"version {number} is still being made after step" in log.read_text(), process)
    refresher.resume()
    said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, said
    text = log.read_text()
    assert re.search(rf"try 1 of version {number} failed: .*sha256 is not the manifest's", text), text
    assert "resuming" not in text
    # The next try made the damaged shard again; nothing that was switched to is damaged.
    report = json.loads((tmp_path / "report.json").read_text())
    used = [span["version"] for span in report["versions_by_step"]]
    assert number in used
    for version in used[1:]:
        assert verify(tmp_path / f"memory-v{version}")["counts"]["rows"] == 40
    # Both ranks switched at the same steps to the same bytes.
    switches = [
        [json.loads(line) for line in (run / f"switches-rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    ]
    assert [{**s, "rank": 0} for s in switches[0]] == [{**s, "rank": 0} for s in switches[1]]
    assert [(s["number"], s["first_step"]) for s in switches[0]] == [
        (s["version"], s["first_step"]) for s in report["versions_by_step"][1:]
    ]
    (failed,) = lost_tries(run)
    cost = report["refresh_cost"]
    assert (failed["number"], cost["lost_tries"]) == (number, 1)
    note = json.loads((run / f"refresh-v{number}.json").read_text())
    assert note["tries"] == 2
    assert note["ready_seconds"] > failed["seconds"] + note["seconds"] - 1


def test_two_ranks_on_two_nodes_are_taken_up_by_four(
    world: World, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, object] = {
        "joint__refresh__switch": "fixed",
        "joint__refresh__delta_steps": 4,
        "joint__compressor_steps": 6,
    }
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", joint_world.Inline)
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "undisturbed", **SETTINGS | values)]) == 0
    output = tmp_path / "more"
    run = output / next((tmp_path / "undisturbed").glob("run-*")).name
    second = cluster.add_node(num_cpus=2)
    # Two processes share the encoding out.
    values |= {"joint__refresh__num_cpus": 0.4, "joint__refresh__num_workers": 2}
    process = begin(world, output, cluster, **values, launch__num_workers=2, launch__cpus_per_worker=1.5)
    wait_for(lambda: reached(run, 8), process)
    # Neither node has room for both: they train and switch across nodes.
    assert [len(below(node, RANK)) for node in (cluster.head, second)] == [1, 1]
    assert sum(len(below(node, "ray::Refresher")) for node in (cluster.head, second)) == 2
    process.kill()
    process.wait()
    done = max(read(run / "metrics.jsonl"))
    process = begin(world, output, cluster, **values, launch__num_workers=4, launch__cpus_per_worker=0.4)
    said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, said
    assert done < STEPS
    log = (run / "log-rank0.txt").read_text()
    assert re.search(r"resuming joint after step \d+ \(of 2 ranks, now 4\)", log), log
    found, expected = (
        read(run / "metrics.jsonl"),
        read(next((tmp_path / "undisturbed").glob("run-*")) / "metrics.jsonl"),
    )
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for step, row in found.items():
        for figure in ("pool_has_positive", "learning_rate_factor", "staleness_steps", "used_memory_version"):
            assert row[figure] == expected[step][figure], (step, figure)
        assert row["loss"] == pytest.approx(expected[step]["loss"], rel=1e-3), step
    one, other = weights(output), weights(tmp_path / "undisturbed")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE
