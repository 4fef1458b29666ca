"""A node that holds a search server is lost while ranks on another train: the server starts elsewhere, and the run ends as if undisturbed."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from joint_world import World, reached, weights
from ray_cluster import Cluster, below

from training import joint
from training.metrics import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TIMEOUT_SECONDS = 900
STEPS, SERVER = 40, "ray::SearchServer"
# Two ranks sum in another order than one process, over updates of 1e-4: no weight is further off than half an update.
TOLERANCE = 5e-5
SETTINGS: dict[str, object] = {
    "joint__steps": STEPS, "joint__checkpoint_every": 2, "joint__optimiser__learning_rate": 1e-4,
    # Steps long enough that the run is far from its end when the node goes.
    "joint__questions_per_step": 24, "joint__micro_batch": 1,
}  # fmt: skip
SERVED: dict[str, object] = {
    "launch__launcher": "ray", "launch__max_failures": 0, "retrieval__search_shards": 2, "retrieval__search_cpus": 0.5,
    # Both ranks fill the head, so that the servers run on the other node.
    "launch__cpus_per_worker": 1,
}  # fmt: skip


def begin(world: World, output: Path, cluster: Cluster, **values: object) -> "subprocess.Popen[str]":
    command = [sys.executable, joint.__file__, *world.sets(output, **SETTINGS, **SERVED, **values)]
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_node_of_a_search_server_is_lost(world: World, tmp_path: Path, cluster: Cluster) -> None:
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "undisturbed", **SETTINGS)]) == 0
    output = tmp_path / "served"
    run = output / next((tmp_path / "undisturbed").glob("run-*")).name
    # A server on each; either node has room for both.
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    process = begin(world, output, cluster)
    wait_for(lambda: reached(run, 4), process)
    nodes.sort(key=lambda node: len(below(node, SERVER)))
    survivor, holder = nodes
    assert below(holder, SERVER)
    cluster.lose(holder)
    assert max(read(run / "metrics.jsonl")) < STEPS // 2
    wait_for(lambda: len(below(survivor, SERVER)) == 2, process)
    said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, said
    # No rank died of it: they waited, and the same step went on.
    assert "resuming" not in (run / "log-rank0.txt").read_text()
    found, expected = read(run / "metrics.jsonl"), read(next((tmp_path / "undisturbed").glob("run-*")) / "metrics.jsonl")
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for step, values in found.items():
        assert values["pool_has_positive"] == expected[step]["pool_has_positive"], step
        assert values["loss"] == pytest.approx(expected[step]["loss"], rel=1e-3), step
    one, other = weights(output), weights(tmp_path / "undisturbed")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE
