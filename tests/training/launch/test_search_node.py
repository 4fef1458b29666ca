"""The node of a search server is lost while ranks train: the server restarts elsewhere, the run is unaffected."""

from pathlib import Path

import pytest

from tests.helpers.joint_world import World, reached, weights
from tests.helpers.ray_cluster import Cluster, below
from tests.helpers.served_runs import SERVER, SETTINGS, STEPS, TIMEOUT_SECONDS, begin, wait_for
from training import joint
from training.loop.lines import read

pytestmark = [pytest.mark.release, pytest.mark.timeout(2400)]
# Two ranks sum in another order than one process, over updates of 1e-4: no weight is further off than half an update.
TOLERANCE = 5e-5


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
    found, expected = (
        read(run / "metrics.jsonl"),
        read(next((tmp_path / "undisturbed").glob("run-*")) / "metrics.jsonl"),
    )
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for step, values in found.items():
        assert values["pool_has_positive"] == expected[step]["pool_has_positive"], step
        assert values["loss"] == pytest.approx(expected[step]["loss"], rel=1e-3), step
    one, other = weights(output), weights(tmp_path / "undisturbed")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE
