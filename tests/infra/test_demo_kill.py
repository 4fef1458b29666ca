"""The demo, killed at random points and restarted each time, produces the artefacts of an undisturbed run."""

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clara.data.questions import read_questions
from clara.memory.store import MemoryStore
from clara.storage.manifest import manifest_hash
from tests.helpers.artefacts import verify
from tests.helpers.towns import write as write_towns

ROOT = Path(__file__).resolve().parents[2]
NUM_KILLS = 20
CONFIG = """
[backbone]
dtype = "float32"
[joint]
steps = 6
questions_per_step = 4
micro_batch = 4
num_candidates = 6
num_selected = 2
from_index = 3
from_bm25 = 2
train_compressor = true
compressor_steps = 3
checkpoint_every = 2
optimiser = { learning_rate = 1e-3 }
[joint.refresh]
policy = "full"
start_step = 1
switch = "fixed"
delta_steps = 2
final = true
[launch]
launcher = "local"
threads = 1
"""


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process and everything below it."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def content(run: Path) -> dict[str, object]:
    """What must not differ: ids, counts, hashes of everything that is a function of its inputs."""
    reports = sorted((run / "joint").glob("memory-v*"))
    return {
        "questions": manifest_hash(run / "questions"),
        "num_questions": len(read_questions(run / "questions")),
        "memory-v0": manifest_hash(run / "memory-v0"),
        "index-v0": manifest_hash(run / "index-v0"),
        "versions": [p.name for p in reports],
        "rows": [MemoryStore.open(p).row_ids.tolist() for p in (run / "memory-v0", *reports)],
        "checkpoint": {f["path"]: f["sha256"] for f in verify(run / "joint" / "checkpoint", "CHECKPOINT")["files"]},
        "last memory": manifest_hash(reports[-1]),
    }


def versions_in_registry(shared: Path) -> tuple[int, str]:
    """Number of model versions, and the champion's."""
    # Read as a file: MLflow's client would keep the database of a directory that was removed.
    with contextlib.closing(sqlite3.connect(shared / "mlflow.db")) as database:
        (number,) = database.execute("SELECT count(*) FROM model_versions WHERE name = 'clara-demo'").fetchone()
        ((champion,),) = database.execute(
            "SELECT version FROM registered_model_aliases WHERE name = 'clara-demo' AND alias = 'champion'"
        )
    return number, str(champion)


@pytest.mark.release
@pytest.mark.timeout(2700)
def test_killed_at_random_points_the_demo_ends_with_the_same_artefacts(
    tmp_path: Path, tiny_backbone: Path, tiny_checkpoint: Path
):
    corpus, config = write_towns(tmp_path / "towns.jsonl"), tmp_path / "tiny.toml"
    config.write_text(CONFIG)

    # The same directory each time: records name the file that they came from.
    home = tmp_path / "home"

    def command() -> list[str]:
        given = [
            "--input",
            str(corpus),
            "--backbone",
            str(tiny_backbone),
            "--start",
            str(tiny_checkpoint),
            "--config",
            str(config),
        ]
        # One directory above each run holds its registry.
        return [
            sys.executable,
            "-m",
            "infra.demo",
            "--documents",
            "30",
            "--no-world",
            "--output",
            str(home / "run"),
            *given,
        ]

    def start() -> subprocess.Popen[bytes]:
        with open(tmp_path / "log.txt", "ab") as log:
            return subprocess.Popen(command(), cwd=ROOT, stdout=log, stderr=log)

    began = time.monotonic()
    assert start().wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    whole_seconds = time.monotonic() - began
    expected = content(home / "run")
    shutil.rmtree(home)
    rng = random.Random(int(time.time()))
    kills, finished = 0, 0
    while kills < NUM_KILLS or not finished:
        process = start()
        try:
            # What is done stays done, so that half a run's time from each start on reaches every step. Past the last
            # kill it may run to its end.
            status = process.wait(timeout=rng.uniform(0.0, whole_seconds / 2) if kills < NUM_KILLS else None)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            kills += 1
            continue
        assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
        assert content(home / "run") == expected
        assert versions_in_registry(home) == (1, "1")
        shutil.rmtree(home)
        finished += 1
