"""A job on Spark through Beam's runner: accepted options, early checks, and the job server's log.

The job server is a Java program that this process starts; it is Spark's driver. Python code runs in this process
(LOOPBACK, a local master only), in the worker pools of the nodes (EXTERNAL, see `pipelines.worker_pool`) or in
containers (DOCKER).
"""

import logging
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    SparkRunnerOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.runners.portability.spark_runner import LOCAL_MASTER_PATTERN, SparkJarJobServer

from clara.errors import InputError
from pipelines.engines.check_pool import probe_pool
from pipelines.engines.names import SPARK
from pipelines.engines.option_names import option_names

RUNNER = SPARK
# Options of the Java job server that Beam's Python passes on without declaring them.
SERVER_OPTIONS = frozenset(
    {
        "bundle_size",
        "cache_disabled",
        "checkpoint_dir",
        "enable_spark_metric_sinks",
        "environment_expiration_millis",
        "prefer_group_by_key_to_handle_huge_values",
        "retain_docker_containers",
        "storage_level",
    }
)
_STORAGE_OPTIONS = {
    "project",
    "temp_location",
    "impersonate_service_account",
    "gcp_oauth_scopes",
    "no_auth",
    "enable_gcs_soft_delete_warning",
}
_MIN_JAVA = 11
_CONNECT_SECONDS = 5
_LOG = logging.getLogger(__name__)


def is_local(options: PipelineOptions) -> bool:
    """True if the master runs in the job server of this process."""
    return bool(re.match(LOCAL_MASTER_PATTERN, options.view_as(SparkRunnerOptions).spark_master_url))


def prepare(options: PipelineOptions, typed: Collection[str], num_workers: int) -> None:
    """Check the options, and set those that a corpus job needs on Spark.

    Args:
        options: Beam's options; changed in place.
        typed: names of the options that the user gave.
        num_workers: value of the job's `--num-workers`.

    Raises:
        InputError: an option that has no effect here, or an environment that cannot work with this master.
    """
    ignored = option_names(DirectOptions, WorkerOptions, TestOptions) | (
        option_names(GoogleCloudOptions) - _STORAGE_OPTIONS
    )
    for name in sorted(set(typed) & ignored):
        instead = (
            "; give --environment_type=DOCKER --environment_config=IMAGE"
            if name == "sdk_container_image"
            else "; leave it out"
        )
        raise InputError(f"--{name}: {RUNNER} does not take it{instead}")
    if num_workers:
        raise InputError(
            f"--num-workers {num_workers}: is for the local runner; on Spark give --sdk_worker_parallelism, "
            "worker processes a node"
        )
    _check_environment(options)
    portable, setup = options.view_as(PortableOptions), options.view_as(SetupOptions)
    if portable.environment_type == "EXTERNAL" and (setup.setup_file or setup.requirements_file):
        raise InputError(
            "--setup_file, --requirements_file: a worker pool installs nothing; stage a wheel with --extra_package"
        )
    if "output_executable_path" in typed:
        raise InputError(
            "--output_executable_path: would write a jar and run nothing, and no MEMORY would come of it; leave it out"
        )
    if "environment_cache_millis" in typed:
        raise InputError(
            "--environment_cache_millis: a worker that has died stays in that cache, and all tries of its task fail; "
            "leave it out"
        )
    if not options.view_as(DebugOptions).lookup_experiment("pre_optimize"):
        options.view_as(DebugOptions).add_experiment("pre_optimize=all")


def _check_environment(options: PipelineOptions) -> None:
    """Check that the environment works with the master.

    Raises:
        InputError: it does not work; the message names environments that do.
    """
    master, portable = options.view_as(SparkRunnerOptions).spark_master_url, options.view_as(PortableOptions)
    kind, config = portable.environment_type, portable.environment_config
    if is_local(options):
        kind = portable.environment_type = kind or "LOOPBACK"
    elif not master.startswith("spark://"):
        raise InputError(
            f"--spark_master_url {master!r}: expected local, local[N] or spark://HOST:PORT; "
            "Beam's job server is the driver and knows no other manager"
        )
    elif kind in (None, "LOOPBACK"):
        raise InputError(
            f"--environment_type {kind}: executors of {master} cannot run Python code in this process; "
            "give EXTERNAL with --environment_config=localhost:50000 (a worker pool on every node) "
            "or DOCKER with --environment_config=IMAGE"
        )
    if kind not in ("LOOPBACK", "EXTERNAL", "DOCKER", "PROCESS"):
        raise InputError(f"--environment_type {kind!r}: expected LOOPBACK, EXTERNAL, DOCKER or PROCESS")
    if kind in ("EXTERNAL", "DOCKER", "PROCESS") and not (config or portable.environment_options):
        wanted = {
            "EXTERNAL": "HOST:PORT of the worker pools, as localhost:50000",
            "DOCKER": "the worker image",
            "PROCESS": 'JSON with "command"',
        }
        raise InputError(f"--environment_config: is needed with --environment_type={kind}: {wanted[kind]}")


def check_paths(options: PipelineOptions, paths: dict[str, str]) -> None:
    """Refuse relative paths if other machines must read them.

    Args:
        options: Beam's options.
        paths: flag → path, empty if not given.

    Raises:
        InputError: a path is relative; the message names its flag.
    """
    if is_local(options):
        return
    for flag, path in paths.items():
        if path and "://" not in path and not Path(path).is_absolute():
            raise InputError(
                f"--{flag} {path}: relative, which means nothing to Spark's nodes; "
                "give an absolute path that all of them share, or a URL"
            )


def preflight(options: PipelineOptions) -> None:
    """Check that Java, the job server's jar, the master and the worker pool are available.

    Raises:
        InputError: one of them is not; the message says what to do.
    """
    check_java(options.view_as(JobServerOptions).job_server_java_launcher)
    _fetch_jar(options)
    master = options.view_as(SparkRunnerOptions).spark_master_url
    if not is_local(options):
        _check_answers(
            f"--spark_master_url {master}", urlsplit(master).netloc, "start the master, or correct its address"
        )
    portable = options.view_as(PortableOptions)
    if portable.environment_type == "EXTERNAL":
        _check_pool(portable.environment_config, None if is_local(options) else urlsplit(master).hostname)
    log = _log_job_server()
    _LOG.info("Spark's job server starts; its log is %s", log)


def check_java(launcher: str) -> None:
    """Check that Java is installed and new enough for the job server.

    Raises:
        InputError: Java is missing or too old.
    """
    path = shutil.which(launcher)
    if path is None:
        raise InputError(
            f"{launcher}: not found, and Beam's Spark job server is a Java program; install Java 17, "
            "or give --job_server_java_launcher"
        )
    said = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < _MIN_JAVA:
        raise InputError(
            f"{path}: is {said.splitlines()[0] if said else 'no Java'}; "
            f"Beam's Spark job server needs Java {_MIN_JAVA} or newer, 17 say"
        )


def _fetch_jar(options: PipelineOptions) -> None:
    """Find the job server's jar, or download it as Beam would."""
    given = options.view_as(SparkRunnerOptions).spark_job_server_jar
    if given and "://" not in given and not Path(given).is_file():
        raise InputError(
            f"--spark_job_server_jar {given}: no such file; give the jar of Beam's Spark 3 job server, "
            "or leave it out to fetch it"
        )
    server = SparkJarJobServer(options)
    where = server.path_to_jar()
    try:
        jar = server.local_jar(where, options.view_as(JobServerOptions).jar_cache_dir)
    except (RuntimeError, URLError, OSError) as error:
        raise InputError(
            f"{where}: cannot be fetched ({error}); fetch it elsewhere and give --spark_job_server_jar=FILE"
        ) from error
    options.view_as(SparkRunnerOptions).spark_job_server_jar = str(jar)


def _check_answers(what: str, address: str, remedy: str) -> None:
    """Connect to HOST:PORT.

    Raises:
        InputError: nobody answers.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{what}: nothing answers at {address} ({error}); {remedy}") from error


def is_this_machine(host: str) -> bool:
    """Whether an address belongs to this machine."""
    try:
        address = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
    except OSError:
        return False
    return True


def _check_pool(address: str, master_host: str | None) -> None:
    """Check that a pool on this machine answers and its workers start; pools of other nodes can't be checked from here.

    Raises:
        InputError: a pool on this machine does not answer or start workers.
    """
    host = address.rpartition(":")[0]
    if master_host and host in ("localhost", "127.0.0.1") and not is_this_machine(master_host):
        _LOG.info("each node of the cluster asks its own %s for workers, which cannot be checked from here", address)
        return
    remedy = f"start one on every node: python -m pipelines.worker_pool --port {address.rpartition(':')[2]}"
    _check_answers(f"--environment_config {address}", address, remedy)
    if is_this_machine(host):
        probe_pool(address)


def _log_job_server() -> str:
    """Write the log of the job server to a file instead of the terminal. Returns its name."""
    logger = logging.getLogger(SparkJarJobServer.__name__)
    if not logger.handlers:
        with tempfile.NamedTemporaryFile(prefix="spark-job-server-", suffix=".log", delete=False) as file:
            handler = logging.FileHandler(file.name)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    found: Sequence[logging.FileHandler] = [
        handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)
    ]
    return found[0].baseFilename
