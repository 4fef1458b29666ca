"""Joint runs under Ray with search servers: settings, start, waiting."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.joint_world import World
from tests.helpers.ray_cluster import Cluster
from training import joint

TIMEOUT_SECONDS = 900
STEPS, SERVER = 40, "ray::SearchServer"
SETTINGS: dict[str, object] = {
    "joint__steps": STEPS,
    "joint__checkpoint_every": 2,
    "joint__optimiser__learning_rate": 1e-4,
    # Steps long enough that the run is far from its end when the node goes.
    "joint__questions_per_step": 24,
    "joint__micro_batch": 1,
    "retrieval__exact_rows": 0,  # both levels ask the servers; it enters the run's name
}
SERVED: dict[str, object] = {
    "launch__launcher": "ray",
    "launch__max_failures": 0,
    "retrieval__search_shards": 2,
    "retrieval__search_cpus": 0.5,
    # Both ranks fill the head, so that the servers run on the other node.
    "launch__cpus_per_worker": 1,
}


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
