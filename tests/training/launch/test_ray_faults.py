"""One submitted run on two Ray nodes that loses the refresh worker, its node, a rank and the driver in turn.

With `switch = "fixed"` it ends as a run that nothing happened to: the same steps, versions and weights.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers import joint_world
from tests.helpers.joint_world import World, reached, weights
from tests.helpers.ray_cluster import Cluster, below, kill
from training import joint
from training.loop.lines import read

pytestmark = [pytest.mark.release, pytest.mark.timeout(3600)]
TIMEOUT_SECONDS = 1200
STEPS, KILL_RANK_AFTER, KILL_DRIVER_AFTER = 60, 8, 20
# Two ranks sum in another order than one process, over many AdamW updates of 1e-4: no weight is further off than half
# an update.
TOLERANCE = 5e-5
SETTINGS: dict[str, object] = {
    "joint__steps": STEPS,
    "joint__checkpoint_every": 2,
    # Steps long enough that the run is far from its end when something is killed.
    "joint__questions_per_step": 16,
    "joint__micro_batch": 1,
    "joint__train_compressor": "true",
    "joint__compressor_steps": 6,
    "joint__optimiser__learning_rate": 1e-4,
    "joint__refresh__policy": "full",
    "joint__refresh__switch": "fixed",
    "joint__refresh__start_step": 2,
    "joint__refresh__delta_steps": 4,
    "joint__refresh__num_cpus": 1,
    "joint__refresh__wait_seconds": TIMEOUT_SECONDS,
    # Both ranks fill the head, so that the refresh runs on the other node.
    "launch__cpus_per_worker": 1,
}


def wait_for(there: Callable[[], object], what: str, cluster: Cluster) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not there():
        assert time.monotonic() < deadline, f"{what} did not come; {cluster.job('list')}"
        time.sleep(0.2)


def driver(head: psutil.Process) -> psutil.Process:
    """The submitted program itself, not the shell around it."""
    return next(p for p in below(head, sys.executable) if "training/joint.py" in p.cmdline())


def test_run_that_loses_everything_once_ends_as_if_undisturbed(
    world: World, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = cluster.add_node(num_cpus=1)
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", joint_world.Inline)
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "undisturbed", **SETTINGS)]) == 0
    run = tmp_path / "submitted" / next((tmp_path / "undisturbed").glob("run-*")).name
    program = [sys.executable, "training/joint.py", *world.sets(tmp_path / "submitted", **SETTINGS)]
    cluster.submit("first", program, TIMEOUT_SECONDS)

    # 1. The refresh's worker. The second node runs nothing else.
    wait_for(lambda: below(second, "ray::Refresher.run"), "the refresh", cluster)
    kill(below(second, "ray::Refresher.run"))
    log = run / "log-rank0.txt"
    wait_for(lambda: "try 1 of version 1 failed" in log.read_text(), "the second try", cluster)

    # 2. Its node, while the second try is under way; another one joins.
    wait_for(lambda: below(second, "ray::Refresher.run"), "the second try's process", cluster)
    cluster.lose(second)
    wait_for(lambda: "try 2 of version 1 failed" in log.read_text(), "the third try", cluster)
    cluster.add_node(num_cpus=1)

    # 3. A rank, after the switch.
    wait_for(lambda: reached(run, KILL_RANK_AFTER), "the switch", cluster)
    rank = int((run / "log-rank1.txt").read_text().split("process ")[-1].split()[0])
    os.kill(rank, signal.SIGKILL)
    wait_for(lambda: "resuming joint after step" in log.read_text(), "the restart", cluster)

    # 4. The driver; the same job is submitted again.
    wait_for(lambda: reached(run, KILL_DRIVER_AFTER), "more steps", cluster)
    driver(cluster.head).kill()
    cluster.submit("second", program, TIMEOUT_SECONDS)
    wait_for((tmp_path / "submitted/report.json").exists, "the end", cluster)

    assert log.read_text().count("resuming joint after step") == 2
    report, wanted = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("submitted", "undisturbed")
    )
    assert [span["version"] for span in report["versions_by_step"]] == [0, 1]
    assert report["versions_by_step"] == wanted["versions_by_step"]
    found, expected = (
        read(next((tmp_path / name).glob("run-*")) / "metrics.jsonl") for name in ("submitted", "undisturbed")
    )
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for step, values in found.items():
        # The same questions and pools in the same order: what is counted is equal, what is summed nearly.
        for figure in ("pool_has_positive", "learning_rate_factor", "staleness_steps"):
            assert values[figure] == expected[step][figure], (step, figure)
        assert values["loss"] == pytest.approx(expected[step]["loss"], rel=1e-3), step
    one, other = weights(tmp_path / "submitted"), weights(tmp_path / "undisturbed")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE
