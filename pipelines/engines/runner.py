"""Where a job runs: Beam's portable runner on local cores without a download, or any runner Beam has."""

import argparse
import itertools
import logging
import os
import re
from collections.abc import Sequence

import apache_beam as beam
import grpc
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    AzureOptions,
    DirectOptions,
    GoogleCloudOptions,
    HadoopFileSystemOptions,
    PipelineOptions,
    S3Options,
    SetupOptions,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult

from clara.errors import InputError
from pipelines.engines import dataflow, spark
from pipelines.engines.names import LOCAL
from pipelines.engines.process_pool import num_cores

# Namespaces of the counters of our jobs.
NAMESPACES = ("build_memory", "score_utilities")
# Beam's S3 options are passed on to the S3 client for artefacts through these variables; workers on this machine
# inherit them.
_S3_VARIABLES = {
    "s3_endpoint_url": "AWS_ENDPOINT_URL",
    "s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "s3_session_token": "AWS_SESSION_TOKEN",
    "s3_region_name": "AWS_DEFAULT_REGION",
}
_WORKER_ERROR = re.compile(
    r"clara\.(?:errors\.InputError|storage\.base\.StorageError): (.+?)(?: \[while running|\\n|\n|$)"
)
_LOG = logging.getLogger(__name__)


def beam_options(rest: Sequence[str], runner: str, num_workers: int) -> PipelineOptions:
    """Parse the arguments that are not the job's own as Beam's options.

    Args:
        rest: `--name=value` arguments for Beam.
        runner: `local`, or a runner's name for Beam.
        num_workers: threads of the local runner; 0: as many as there are cores.

    Raises:
        InputError: an argument that Beam does not know either, or that has no effect with this runner.
    """
    for before, argument in itertools.pairwise(["", *rest]):
        if not argument.startswith("-") and (not before.startswith("-") or "=" in before):
            raise InputError(f"{argument}: neither an option nor the value of one; see --help")
    options = PipelineOptions([*rest] if runner == LOCAL else [*rest, f"--runner={runner}"])
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    typed = {a.partition("=")[0].lstrip("-").replace("-", "_"): a.partition("=")[0] for a in rest if a.startswith("-")}
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(options.get_all_options())
    if runner == spark.RUNNER:
        unknown -= spark.SERVER_OPTIONS
    if unknown:
        names = [typed[name] for name in typed if name in unknown]
        raise InputError(f"{', '.join(names) or unknown}: neither this job nor Beam knows such an argument; see --help")
    # Everything that a worker needs is in an installed package; the main module's state is not.
    options.view_as(SetupOptions).save_main_session = False
    if runner == LOCAL:
        if no_effect := [typed[name] for name in typed if name not in _store_options()]:
            raise InputError(
                f"{', '.join(no_effect)}: no effect on --runner {LOCAL}, which takes only Beam's options of stores "
                "(as --s3_region_name); leave it out, or name the runner that it is for"
            )
        workers = num_workers or num_cores()
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers, direct.direct_running_mode = workers, "multi_threading"
    elif runner == spark.RUNNER:
        spark.prepare(options, typed, num_workers)
    elif runner == dataflow.RUNNER:
        dataflow.prepare(options, typed, num_workers)
    FileSystems.set_options(options)  # which lists the input ahead of any pipeline
    for name, variable in _S3_VARIABLES.items():
        if value := getattr(options.view_as(S3Options), name):
            os.environ[variable] = value
    return options


def _store_options() -> set[str]:
    """Names of Beam's options that say how to reach files."""
    parser = argparse.ArgumentParser(add_help=False)
    for kind in (S3Options, GoogleCloudOptions, AzureOptions, HadoopFileSystemOptions):
        kind._add_argparse_args(parser)
    return {action.dest for action in parser._actions}


def make_pipeline(options: PipelineOptions, runner: str) -> beam.Pipeline:
    """A pipeline on the runner.

    `local` is the portable runner that ships with Beam: its `DirectRunner` first tries to download another one.

    Raises:
        InputError: the runner, or something that it needs, is missing.
    """
    if runner == spark.RUNNER:
        spark.preflight(options)
    if runner != LOCAL:
        try:
            return beam.Pipeline(options=options)
        except (ValueError, ImportError, AttributeError) as error:
            raise InputError(
                f"--runner {runner}: Beam makes no pipeline for it ({error}); give {LOCAL}, "
                "or a runner that is installed here"
            ) from error
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    information = fn_runner.ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    return beam.Pipeline(runner=fn_runner.FnApiRunner(provision_info=information), options=options)


def execute(pipeline: beam.Pipeline) -> dict[str, int] | None:
    """Run a pipeline to its end. Returns its counters as `counters` does.

    Raises:
        InputError: raised in a worker; the text that the runner adds is removed.
    """
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except InputError as error:  # raised in this process; the runner only appends the stage
        raise InputError(str(error).partition(" [while running")[0]) from error
    except Exception as error:  # the runner's error, with the worker's error in its text
        found = _WORKER_ERROR.search(str(error))
        if found:
            raise InputError(found[1]) from error
        raise
    return counters(result)


def counters(result: PipelineResult) -> dict[str, int] | None:
    """Sums of all counters of our functions, by name; None if the runner does not report counters.

    Some runners count attempts, so the counts of a manifest do not use counters: they are data of the pipeline.
    """
    try:
        found = result.metrics().query()["counters"]
    except (
        NotImplementedError,
        TypeError,
        grpc.RpcError,
    ) as error:  # TypeError: Beam 2.77 where Spark runs an uber jar
        _LOG.info("the runner does not report its counters (%s)", error)
        return None
    sums: dict[str, int] = {}
    for counter in found:
        name = counter.key.metric
        if name.namespace in NAMESPACES:
            sums[name.name] = sums.get(name.name, 0) + (
                counter.attempted if counter.committed is None else counter.committed
            )
    return dict(sorted(sums.items()))
