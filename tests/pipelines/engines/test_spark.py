"""Spark: early refusals, the worker pool, and whole jobs on a local master and a cluster, with faults."""

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.portability.artifact_service import ArtifactRetrievalService
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from clara.errors import InputError
from pipelines.build_memory.command import main
from pipelines.engines import spark
from pipelines.engines.check_pool import probe_pool
from pipelines.engines.runner import beam_options, make_pipeline
from pipelines.worker_pool import command as worker_pool
from pipelines.worker_pool.wheel import unpack_wheel
from tests.helpers import spark_cluster
from tests.helpers.ports import free_ports
from tests.helpers.spark_cluster import wait_for

CLUSTER = ["--spark_master_url=spark://node:7077"]
POOL = ["--environment_type=EXTERNAL", "--environment_config=localhost:50000"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spark_master=local"], "--spark_master: neither this job nor Beam knows"),
        (["--max_num_workers=4"], "--max_num_workers: SparkRunner does not take it"),
        (["--direct_num_workers=4"], "--direct_num_workers: SparkRunner does not take it"),
        (["--dry_run=True"], "--dry_run: SparkRunner does not take it"),
        (["--sdk_container_image=image"], "--environment_type=DOCKER --environment_config=IMAGE"),
        (["--output_executable_path=job.jar"], "would write a jar and run nothing"),
        (["--spark_master_url=yarn"], "expected local, local.N. or spark://HOST:PORT"),
        (CLUSTER, "--environment_type None: executors of spark://node:7077 cannot run Python code in this process"),
        ([*CLUSTER, "--environment_type=LOOPBACK"], "cannot run Python code in this process"),
        ([*CLUSTER, "--environment_type=EXTERNAL"], "--environment_config: is needed .* HOST:PORT"),
        ([*CLUSTER, "--environment_type=CONTAINER"], "expected LOOPBACK, EXTERNAL, DOCKER or PROCESS"),
        ([*CLUSTER, *POOL, "--environment_cache_millis=5"], "a worker that has died stays in that cache"),
        ([*CLUSTER, *POOL, "--setup_file=setup.py"], "stage a wheel with --extra_package"),
    ],
)
def test_options_that_cannot_work_on_spark_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        beam_options(arguments, "SparkRunner", 0)


def test_processes_of_the_local_runner_are_refused_on_spark() -> None:
    with pytest.raises(InputError, match="--sdk_worker_parallelism"):
        beam_options([], "SparkRunner", 2)


def test_stages_are_fused_unless_said_otherwise() -> None:
    options = beam_options([*CLUSTER, *POOL, "--storage_level=MEMORY_AND_DISK"], "SparkRunner", 0)
    assert options.view_as(DebugOptions).lookup_experiment("pre_optimize") == "all"
    given = beam_options([*CLUSTER, *POOL, "--experiments=pre_optimize=none"], "SparkRunner", 0)
    assert given.view_as(DebugOptions).lookup_experiment("pre_optimize") == "none"


@pytest.mark.parametrize("flag", ["--input", "--output", "--checkpoint"])
def test_relative_paths_mean_nothing_to_a_cluster(
    flag: str, corpus_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    given = {
        "--input": str(corpus_file),
        "--output": str(tmp_path / "memory"),
        "--checkpoint": str(tiny_checkpoint),
        flag: "here",
    }
    arguments = [part for pair in given.items() for part in pair]
    with pytest.raises(InputError, match=rf"{flag} here: relative, which means nothing to Spark's nodes"):
        main([*arguments, "--runner=SparkRunner", *CLUSTER, *POOL])


def preflight(*arguments: str) -> None:
    spark.preflight(beam_options(arguments, "SparkRunner", 0))


@pytest.fixture
def jar(tmp_path: Path) -> str:
    with zipfile.ZipFile(tmp_path / "server.jar", "w") as file:
        file.writestr("META-INF/MANIFEST.MF", "")
    return f"--spark_job_server_jar={tmp_path / 'server.jar'}"


@pytest.fixture
def java(tmp_path: Path) -> Callable[[str], str]:
    """A Java that says it is of a version."""

    def of(version: str) -> str:
        launcher = tmp_path / f"java-{version}"
        launcher.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        launcher.chmod(0o755)
        return f"--job_server_java_launcher={launcher}"

    return of


def test_what_is_missing_is_reported_before_anything_starts(
    jar: str, java: Callable[[str], str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no-such-java: not found.*install Java 17"):
        preflight("--job_server_java_launcher=no-such-java", jar)
    with pytest.raises(InputError, match=r"1\.8\.0_392.*needs Java 11 or newer"):
        preflight(java("1.8.0_392"), jar)
    with pytest.raises(InputError, match=r"none.jar: no such file"):
        preflight(java("17.0.15"), f"--spark_job_server_jar={tmp_path}/none.jar")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/server.jar: cannot be fetched"):
        preflight(
            java("17.0.15"),
            "--spark_job_server_jar=http://127.0.0.1:9/server.jar",
            f"--jar_cache_dir={tmp_path / 'cache'}",
        )
    (free,) = free_ports(1)
    with pytest.raises(InputError, match=r"nothing answers at 127.0.0.1:.*start the master"):
        preflight(java("11.0.2"), jar, f"--spark_master_url=spark://127.0.0.1:{free}", *POOL)
    with pytest.raises(InputError, match=rf"python -m pipelines.worker_pool --port {free}"):
        preflight(java("17.0.15"), jar, "--environment_type=EXTERNAL", f"--environment_config=localhost:{free}")


@contextmanager
def serving(servicer: BeamFnExternalWorkerPoolServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(0)


def test_a_pool_whose_python_lacks_beam_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: apache_beam' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        serving(BeamFnExternalWorkerPoolServicer(use_process=True)) as address,
        pytest.raises(InputError, match="workers do not start"),
    ):
        probe_pool(address, seconds=3)


def test_a_pool_that_cannot_start_a_process_says_why() -> None:
    servicer = BeamFnExternalWorkerPoolServicer(use_process=True, container_executable="/no/such/boot")
    with serving(servicer) as address, pytest.raises(InputError, match=r"workers do not start \(FileNotFoundError"):
        probe_pool(address, seconds=30)


def test_what_is_no_pool_is_reported(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    with pytest.raises(InputError, match=r"no worker pool \(UNIMPLEMENTED\)"):
        probe_pool(f"localhost:{port}", seconds=30)
    server.stop(0)


def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    server, port = worker_pool.start_server("127.0.0.1", 0, worker_pool.Workers(tmp_path))
    with pytest.raises(InputError, match=f"--port {port}"):
        worker_pool.start_server("127.0.0.1", port, worker_pool.Workers(tmp_path))
    server.stop(0)


def test_a_wheel_is_unpacked_once_however_many_want_it(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("package/module.py", "value = 1")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(unpack_wheel(packed.getvalue(), tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert (found[0] / "package/module.py").read_text() == "value = 1"
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


class Sleepers(worker_pool.Template):
    """A template whose workers sleep."""

    def __init__(self) -> None:
        self.stopped: list[int] = []

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        self.stopped.append(order["stop"])
        return {}


def test_stopping_a_name_that_two_runners_use_ends_neither(tmp_path: Path) -> None:
    workers, template = worker_pool.Workers(tmp_path), Sleepers()
    workers._running = {("a:1", "1-1"): (template, 1), ("b:2", "1-1"): (template, 2), ("b:2", "11-1"): (template, 3)}
    workers.stop(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"))
    workers.stop(beam_fn_api_pb2.StopWorkerRequest(worker_id="11-1"))
    wait_for(lambda: bool(template.stopped))
    assert template.stopped == [3]
    assert list(workers._running) == [("a:1", "1-1"), ("b:2", "1-1")]


class Provision(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """Describes to workers a job that staged one file."""

    def __init__(self, path: Path, name: str) -> None:
        options = json_format.ParseDict({"beam:option:s3_endpoint_url:v1": "http://store"}, Struct())
        artifact = beam_runner_api_pb2.ArtifactInformation(
            type_urn="beam:artifact:type:file:v1",
            type_payload=beam_runner_api_pb2.ArtifactFilePayload(path=str(path)).SerializeToString(),
            role_payload=beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name).SerializeToString(),
        )
        self._info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=options, dependencies=[artifact])

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self._info)


@pytest.mark.parametrize(
    ("name", "unpacked"),
    [("clara_rag-0.1.0-py3-none-any.whl", True), ("submission_environment_dependencies.txt", False)],
)
def test_workers_get_the_jobs_options_and_its_wheel(
    name: str, unpacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        file.writestr("clara/staged.py", "")
    orders: list[dict[str, Any]] = []
    monkeypatch.setattr(worker_pool.Workers, "template", lambda self, wheels: made.append(wheels) or Recorder(orders))
    made: list[list[Path]] = []
    server = grpc.server(ThreadPoolExecutor(4))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Provision(tmp_path / name, name), server)
    retrieval = ArtifactRetrievalService(io.FileIO)
    beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(retrieval, server)
    here = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{server.add_insecure_port('localhost:0')}")
    server.start()
    request = beam_fn_api_pb2.StartWorkerRequest(
        worker_id="1-1", control_endpoint=here, artifact_endpoint=here, provision_endpoint=here
    )
    worker_pool.Workers(tmp_path).start(request)
    server.stop(0)
    assert [(folder / "clara/staged.py").is_file() for folder in made[0]] == ([True] if unpacked else [])
    assert json.loads(orders[0]["start"]["PIPELINE_OPTIONS"]) == {"beam:option:s3_endpoint_url:v1": "http://store"}
    assert orders[0]["start"]["WORKER_ID"] == "1-1"
    assert here.url in orders[0]["start"]["CONTROL_API_SERVICE_DESCRIPTOR"]


class Recorder(worker_pool.Template):
    """A template that notes its orders."""

    def __init__(self, orders: list[dict[str, Any]]) -> None:
        self._orders = orders

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        self._orders.append(order)
        return {"process": 1}


@pytest.mark.slow
def test_workers_are_forked_from_a_process_that_has_imported_what_a_job_needs() -> None:
    wanted = {"torch", "apache_beam.runners.worker.sdk_worker_main", "pipelines.build_memory.graph"}
    code = f"import sys, pipelines.worker_pool.template; sys.exit(not {wanted} <= set(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_pool_gives_workers_and_takes_them_along(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "pipelines.worker_pool", f"--port={port}"]
    with (
        open(tmp_path / "log", "w", encoding="utf-8") as log,
        spark_cluster.process(command, log, spark_cluster.spark_environment()) as pool,
    ):
        wait_for(lambda: spark_cluster.listens(port))
        probe_pool(f"localhost:{port}")
        family = pool.children(recursive=True)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


def test_a_pipeline_is_not_made_where_the_preflight_fails() -> None:
    with pytest.raises(InputError, match="no-such-java"):
        make_pipeline(beam_options(["--job_server_java_launcher=no-such-java"], "SparkRunner", 0), "SparkRunner")
