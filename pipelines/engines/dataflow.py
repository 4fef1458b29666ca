"""A job on Google Cloud Dataflow: which options it needs, which it sets, and which stages get GPUs.

Errors are reported before the job is submitted.
"""

import importlib.util
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    SparkRunnerOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.portability.common_urns import resource_hints
from apache_beam.pvalue import PCollection

from clara.errors import InputError
from pipelines.engines.names import DATAFLOW
from pipelines.engines.option_names import option_names

Element = TypeVar("Element")
RUNNER = DATAFLOW
ACCELERATOR = resource_hints.ACCELERATOR.urn
_ONE_PROCESS = "no_use_multiple_sdk_containers"


def prepare(options: PipelineOptions, typed: Collection[str], num_workers: int) -> None:
    """Check the options, and set those that a corpus job needs on Dataflow.

    Args:
        options: Beam's options; changed in place.
        typed: names of the options that the user gave.
        num_workers: value of the job's `--num-workers`.

    Raises:
        InputError: an option is missing, has no effect here, or would install packages on the workers.
    """
    if importlib.util.find_spec("google.cloud.storage") is None:
        raise InputError(
            f"--runner {RUNNER}: Beam's part for Google Cloud is not installed; install the extra gcp: "
            "pip install 'clara-rag[gcp]'"
        )
    for name in sorted(set(typed) & option_names(DirectOptions, SparkRunnerOptions, PortableOptions)):
        raise InputError(f"--{name}: {RUNNER} does not take it; leave it out")
    if num_workers:
        raise InputError(
            f"--num-workers {num_workers}: is for the local runner; "
            "Dataflow takes --num_workers and --max_num_workers, in machines"
        )
    cloud, worker, setup = (
        options.view_as(GoogleCloudOptions),
        options.view_as(WorkerOptions),
        options.view_as(SetupOptions),
    )
    for name, value, example in (
        ("project", cloud.project, "my-project"),
        ("region", cloud.region, "europe-west4"),
        ("temp_location", cloud.temp_location, "gs://bucket/temp"),
        ("sdk_container_image", worker.sdk_container_image, "the worker image, target beam of the Dockerfile"),
    ):
        if not value:
            raise InputError(f"--{name}: is needed with --runner={RUNNER}: {example}")
    for name, value in (("temp_location", cloud.temp_location), ("staging_location", cloud.staging_location)):
        if value and not value.startswith("gs://"):
            raise InputError(f"--{name} {value}: expected gs://BUCKET/FOLDER")
    if setup.requirements_file or setup.setup_file:
        raise InputError(
            "--requirements_file, --setup_file: would install packages on each worker; put them into the image, "
            "and stage a wheel with --extra_package"
        )
    if setup.sdk_location not in ("default", "container"):
        raise InputError(f"--sdk_location {setup.sdk_location}: the worker image has Beam; leave it out")
    setup.sdk_location = "container"


def check_paths(paths: Mapping[str, str]) -> None:
    """Check that Dataflow's machines can see the paths.

    Args:
        paths: flag → path, empty if not given. `checkpoint` and `backbone` may be stored in the worker image.

    Raises:
        InputError: a path is not visible; the message names its flag.
    """
    for flag, path in paths.items():
        if not path or path.startswith("gs://"):
            continue
        if flag in ("checkpoint", "backbone"):
            if not path.startswith("/"):
                raise InputError(
                    f"--{flag} {path}: relative; give gs://…, or the absolute path at which the worker image "
                    "(and this machine) has it"
                )
        elif "://" not in path:
            raise InputError(
                f"--{flag} {path}: is on this machine, which Dataflow's workers do not see; give gs://BUCKET/FOLDER"
            )


def prepare_gpu(options: PipelineOptions, hint: str) -> None:
    """Run one process with many threads on a GPU machine, so that it loads one model.

    Raises:
        InputError: an option excludes GPUs for single stages.
    """
    if not hint:
        return
    cloud, debug = options.view_as(GoogleCloudOptions), options.view_as(DebugOptions)
    if cloud.flexrs_goal:
        raise InputError(
            f"--flexrs_goal {cloud.flexrs_goal}: not with --gpu-type, as FlexRS gives all stages the same machines; "
            "leave it out"
        )
    if any("worker_accelerator" in given for given in cloud.dataflow_service_options or []):
        raise InputError(
            "--dataflow_service_options worker_accelerator: would put a GPU into every machine, "
            "those that read text too; --gpu-type is enough"
        )
    if not debug.lookup_experiment(_ONE_PROCESS):
        debug.add_experiment(_ONE_PROCESS)


def on_gpu(transform: beam.ParDo, hint: str) -> Any:
    """The transform with a resource hint; without a hint, unchanged."""
    return transform.with_resource_hints(accelerator=hint) if hint else transform


def fusion_break(values: PCollection[Element], hint: str, label: str) -> PCollection[Element]:
    """Keep the next stage off the workers of the previous one, with a `Reshuffle`; without a hint, do nothing."""
    return values | label >> beam.Reshuffle() if hint else values


def is_rehearsal(options: PipelineOptions, runner: str) -> bool:
    """True if Beam builds the job without sending it (its `--dry_run=True`; our `--dry-run` builds no job)."""
    return runner == RUNNER and bool(options.view_as(TestOptions).dry_run)


def graph(pipeline: beam.Pipeline) -> list[dict[str, str]]:
    """The steps requested from Dataflow that run our code, each with its image and accelerator.

    Args:
        pipeline: a pipeline that its runner has submitted or built.
    """
    runner: Any = pipeline.runner
    parts = runner.proto_pipeline.components
    steps = []
    for transform in parts.transforms.values():
        if transform.subtransforms or transform.environment_id not in parts.environments:
            continue
        environment = parts.environments[transform.environment_id]
        image = beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
        hint = environment.resource_hints.get(ACCELERATOR, b"").decode()
        steps.append({"step": transform.unique_name, "image": image, "accelerator": hint})
    return sorted(steps, key=lambda step: step["step"])
