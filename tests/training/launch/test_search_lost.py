"""No node is left with room for a run's search servers: the run ends in time, says why, and resumes elsewhere.

`training.launch.ray_train` says who waits for what, and how long.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.joint_world import World, reached
from tests.helpers.ray_cluster import Cluster, below
from tests.helpers.served_runs import SERVER, STEPS, TIMEOUT_SECONDS, begin, wait_for
from training.loop.lines import read

pytestmark = [pytest.mark.release, pytest.mark.timeout(2400)]
# The servers start within it, too.
SEARCH_SECONDS = 30
# Of a busy machine, where a step lasts half a minute before the rank asks; on a quiet one it gives up within a second
# of the limit, and the run has ended ten seconds later.
RANK_MARGIN_SECONDS, RUN_MARGIN_SECONDS = 120, 300


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head of two cores; nodes of one core are added."""
    started = Cluster(tmp_path_factory.mktemp("nodes"), num_cpus=2)
    try:
        yield started
    finally:
        started.close()


def rank_process(run: Path, rank: int) -> psutil.Process:
    return psutil.Process(int((run / f"log-rank{rank}.txt").read_text().split("process ")[-1].split()[0]))


def test_no_node_is_left_for_the_servers(world: World, tmp_path: Path, nodes: Cluster) -> None:
    holder = nodes.add_node(num_cpus=1)
    process = begin(world, tmp_path, nodes, retrieval__search_seconds=SEARCH_SECONDS)
    wait_for(lambda: any(reached(run, 4) for run in tmp_path.glob("run-*")), process)
    (run,) = tmp_path.glob("run-*")
    assert len(below(holder, SERVER)) == 2
    ranks = [rank_process(run, rank) for rank in (0, 1)]
    nodes.lose(holder)
    lost = time.monotonic()
    assert max(read(run / "metrics.jsonl")) < STEPS // 2
    # 1. A rank gives up by the clock.
    log = run / "log-rank0.txt"
    while "rank 0 stops: search: no answer" not in log.read_text():
        assert time.monotonic() - lost < SEARCH_SECONDS + RANK_MARGIN_SECONDS, log.read_text()
        time.sleep(0.05)
    assert time.monotonic() - lost > SEARCH_SECONDS - 5
    # 2. The run ends, with one line that names what was waited for.
    said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert time.monotonic() - lost < SEARCH_SECONDS + RUN_MARGIN_SECONDS
    assert process.returncode == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: search: no answer to "), said
    assert f"within retrieval.search_seconds = {SEARCH_SECONDS} from search-" in last
    assert "room for 2 servers of retrieval.search_cpus = 0.5" in last
    # 3. No rank is left, whether it waited for the servers or for the other rank.
    assert not psutil.wait_procs(ranks, timeout=RUN_MARGIN_SECONDS)[1]
    done = max(read(run / "metrics.jsonl"))
    # 4. The same command resumes where there is room.
    nodes.add_node(num_cpus=1)
    process = begin(world, tmp_path, nodes, retrieval__search_seconds=SEARCH_SECONDS)
    said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, said
    assert f"resuming joint after step {done // 2 * 2} " in log.read_text()
    assert list(read(run / "metrics.jsonl")) == list(range(1, STEPS + 1))
