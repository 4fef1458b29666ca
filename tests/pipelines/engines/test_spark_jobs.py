"""Whole corpus jobs on Spark: equal to the local runner, also when workers and executors are lost."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clara.memory.store import MemoryStore
from clara.storage.folders import sha256_file
from clara.storage.manifest import read_manifest
from pipelines.build_memory.command import main
from tests.helpers import spark_cluster, tiny
from tests.helpers.artefacts import finished_shards
from tests.helpers.spark_cluster import JobServer, wait_for


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> JobServer:
    return spark_cluster.make_job_server(tmp_path_factory.mktemp("jars"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hundred documents in three files, some of them alike, some broken."""
    folder = tmp_path_factory.mktemp("many")
    rows = tiny.documents()
    for part in range(3):
        lines = [
            json.dumps({**row, "id": f"{row['id']}-{part}-{n}", "text": f"{row['text']} It is number {part} {n}."})
            for n in range(5)
            for row in rows
        ]
        lines += [json.dumps(rows[part]), "no JSON", '{"title": "no text"}']
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def arguments(corpus: Path, checkpoint: Path, output: Path, *more: str) -> list[str]:
    given = ["--input", f"{corpus}/*.jsonl", "--checkpoint", str(checkpoint), "--output", str(output)]
    return [*given, "--dtype=float32", "--num-shards=12", "--batch-tokens=1", *more]


@pytest.fixture(scope="module")
def local(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local runner makes of the corpus."""
    output = tmp_path_factory.mktemp("local") / "memory"
    assert main(arguments(corpus, tiny_checkpoint, output, "--num-workers=1")) == 0
    return output


def check_same(found: Path, expected: Path) -> None:
    """The same counts, ids, records and bytes."""
    one, other = read_manifest(found, "MEMORY"), read_manifest(expected, "MEMORY")
    assert one["counts"] == other["counts"]
    assert one["files"] == other["files"]
    assert {path.name for path in found.glob("shard-*")} == {path.name for path in expected.glob("shard-*")}
    assert all(sha256_file(found / entry["path"]) == entry["sha256"] for entry in one["files"])
    assert list(MemoryStore.open(found, verify=True).row_ids) == list(MemoryStore.open(expected).row_ids)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_local_master_makes_what_the_local_runner_makes(
    job_server: JobServer, corpus: Path, tiny_checkpoint: Path, local: Path, tmp_path: Path
) -> None:
    options = ["--runner=SparkRunner", f"--spark_job_server_jar={job_server.jar}", "--spark_master_url=local[2]"]
    command = [
        sys.executable,
        "-m",
        "pipelines.build_memory",
        *arguments(corpus, tiny_checkpoint, tmp_path / "memory", *options),
    ]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=spark_cluster.spark_environment(), timeout=800, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    check_same(tmp_path / "memory", local)
    # Counters of every reason come back from Spark.
    counts = read_manifest(tmp_path / "memory")["counts"]
    counters = ran.stderr.partition("counters of the runner: ")[2].partition("\n")[0]
    assert {f"failed: {reason}" for reason in counts["dead letters by reason"]} == {
        "failed: no text",
        "failed: not JSON",
    }
    assert all(
        f"'{name}': {count}" in counters
        for name, count in (("failed: no text", 3), ("failed: not JSON", 3), ("rows", counts["rows"]))
    ), counters


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cluster_that_loses_a_worker_and_an_executor_makes_the_same(
    job_server: JobServer, corpus: Path, tiny_checkpoint: Path, local: Path, tmp_path: Path
) -> None:
    output = tmp_path / "memory"
    with spark_cluster.standalone(tmp_path) as cluster, open(tmp_path / "job.log", "w", encoding="utf-8") as log:
        options = [
            "--runner=SparkRunner",
            f"--spark_job_server_jar={job_server.jar}",
            f"--spark_master_url={cluster.master}",
        ]
        options += [
            "--environment_type=EXTERNAL",
            f"--environment_config={cluster.pool}",
            f"--files_to_stage={job_server.staged}",
        ]
        command = [
            sys.executable,
            "-m",
            "pipelines.build_memory",
            *arguments(corpus, tiny_checkpoint, output, *options),
        ]
        job = subprocess.Popen(command, stderr=log, stdout=log, env=spark_cluster.spark_environment())
        try:
            kill_in_the_middle(output, job, lambda: python_workers(cluster.pool_process), at_least=1)
            kill_in_the_middle(output, job, lambda: executors(cluster.worker_process), at_least=3)
            assert job.wait(900) == 0, (tmp_path / "job.log").read_text(encoding="utf-8")[-3000:]
        finally:
            job.kill()
    check_same(output, local)


def python_workers(pool: psutil.Process) -> list[psutil.Process]:
    """Workers of a pool: its children have imported everything, theirs work."""
    return [worker for template in pool.children() for worker in template.children()]


def executors(worker: psutil.Process) -> list[psutil.Process]:
    """Executors of a Spark worker."""
    return [child for child in worker.children(recursive=True) if "CoarseGrainedExecutorBackend" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended just now
        return ""


def kill_in_the_middle(
    output: Path, job: "subprocess.Popen[bytes]", victims: Callable[[], list[psutil.Process]], *, at_least: int
) -> None:
    """Kill (-9) one of some processes once so many shards are finished, and not all."""
    wait_for(lambda: job.poll() is not None or len(finished_shards(output, 0)) >= at_least, 600)
    wait_for(lambda: job.poll() is not None or bool(victims()), 300)
    assert job.poll() is None, "too late: the job has ended"
    assert len(finished_shards(output, 0)) < 12, "too late: the shards are finished"
    victims()[0].kill()
