"""Dataflow: what is refused, and the job that Beam would send, made without network or credentials."""

import re
import zipfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DebugOptions, SetupOptions
from apache_beam.portability.api import beam_runner_api_pb2

from clara.data.fields import Fields
from clara.errors import InputError
from clara.memory.fingerprint import EncodingSettings, of_checkpoint
from pipelines.build_memory.command import main
from pipelines.build_memory.graph import add_memory_job
from pipelines.build_memory.outcome import MemoryJob
from pipelines.corpus.splits import Unit
from pipelines.engines import dataflow
from pipelines.engines.gpu import gpu_hint
from pipelines.engines.runner import beam_options, make_pipeline

pytest.importorskip("google.cloud.storage", reason="the extra gcp is not installed")

IMAGE = "europe-west4-docker.pkg.dev/project/clara/beam:1"
NEEDED = [
    "--project=project",
    "--region=europe-west4",
    "--temp_location=gs://bucket/temp",
    f"--sdk_container_image={IMAGE}",
]
GPU = gpu_hint("nvidia-l4", 1, runner=dataflow.RUNNER, device="cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (NEEDED[1:], "--project: is needed"),
        (NEEDED[:3], "--sdk_container_image: is needed"),
        ([*NEEDED, "--staging_location=/tmp/here"], "--staging_location /tmp/here: expected gs://"),
        ([*NEEDED, "--requirements_file=requirements.txt"], "would install packages on each worker"),
        ([*NEEDED, "--sdk_location=beam.tar.gz"], "the worker image has Beam"),
        ([*NEEDED, "--spark_master_url=local"], "--spark_master_url: DataflowRunner does not take it"),
        ([*NEEDED, "--direct_num_workers=2"], "--direct_num_workers: DataflowRunner does not take it"),
    ],
)
def test_options_that_cannot_work_on_dataflow_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        beam_options(arguments, dataflow.RUNNER, 0)


@pytest.mark.parametrize(
    ("flag", "path", "message"),
    [
        ("output", "/data/memory", "--output /data/memory: is on this machine.*gs://BUCKET/FOLDER"),
        ("input", "/data/corpus.jsonl", "--input /data/corpus.jsonl: is on this machine"),
        ("checkpoint", "checkpoint", "--checkpoint checkpoint: relative.*the worker image"),
    ],
)
def test_paths_that_dataflow_cannot_see_are_refused(flag: str, path: str, message: str) -> None:
    given = {
        "output": "gs://bucket/memory",
        "input": "gs://bucket/corpus.jsonl",
        "checkpoint": "/models/checkpoint",
        flag: path,
    }
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    with pytest.raises(InputError, match=message):
        main([*arguments, "--runner=DataflowRunner", *NEEDED])


@pytest.mark.parametrize(
    ("gpu_type", "count", "runner", "device", "message"),
    [
        ("", 1, "DataflowRunner", "cuda", "give --gpu-type"),
        ("nvidia-l4", 1, "SparkRunner", "cuda", "only DataflowRunner chooses machines"),
        ("L4", 1, "DataflowRunner", "cuda", "expected Google Cloud's name of a GPU"),
        ("nvidia-l4", 0, "DataflowRunner", "cuda", "--gpu-count 0: expected 1 or more"),
        ("nvidia-l4", 1, "DataflowRunner", "cpu", "would leave the GPUs of --gpu-type nvidia-l4 idle"),
    ],
)
def test_gpus_that_nobody_would_use_are_refused(
    gpu_type: str, count: int, runner: str, device: str, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        gpu_hint(gpu_type, count, runner=runner, device=device)


def test_a_submission_without_waiting_is_dataflows_alone(
    corpus_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--no-wait: the job of --runner local ends with this process"):
        main(
            ["--input", str(corpus_file), "--output", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--no-wait"]
        )


def rehearse(checkpoint: Path, *arguments: str, codec: str = "float16", gpu: str = "", limit: int = 0) -> beam.Pipeline:
    """The pipeline after Beam has made its job of it."""
    fingerprint = of_checkpoint(checkpoint, EncodingSettings(96, 0, key_size=64, key_seed=0, dtype="float32"))
    job = MemoryJob(
        output="gs://bucket/memory",
        checkpoint=str(checkpoint),
        backbone="",
        device="cuda" if gpu else "cpu",
        fingerprint=fingerprint,
        fields=Fields(),
        num_shards=4,
        codec=codec,
        batch_tokens=4096,
        limit=limit,
        accelerator=gpu,
    )
    options = beam_options([*NEEDED, "--dry_run=True", *arguments], dataflow.RUNNER, 0)
    dataflow.prepare_gpu(options, gpu)
    pipeline = make_pipeline(options, dataflow.RUNNER)
    add_memory_job(pipeline, [Unit("gs://bucket/corpus.jsonl", "gs://bucket/corpus.jsonl", "jsonl")], job)
    pipeline.run()
    return pipeline


def accelerated(pipeline: beam.Pipeline) -> set[str]:
    return {step["step"].partition("/")[0] for step in dataflow.graph(pipeline) if step["accelerator"]}


def consumers(pipeline: beam.Pipeline, step: str) -> list[Any]:
    """What is fed by a step's main outputs."""
    transforms = [t for t in pipeline.runner.proto_pipeline.components.transforms.values() if not t.subtransforms]
    made = {output for t in transforms if t.unique_name == step for output in t.outputs.values()}
    return [t for t in transforms if made & set(t.inputs.values())]


def test_without_gpus_all_steps_run_in_the_image_and_ask_for_nothing(tiny_checkpoint: Path) -> None:
    steps = dataflow.graph(rehearse(tiny_checkpoint))
    assert {"Read", "Chunk", "CompressAndWrite"} <= {step["step"].partition("/")[0] for step in steps}
    assert {step["image"] for step in steps} == {IMAGE}
    assert not any(step["accelerator"] for step in steps)


@pytest.fixture(scope="module")
def with_gpu(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[beam.Pipeline, Path]:
    """A pipeline with GPUs and one wheel, and the wheel."""
    wheel = tmp_path_factory.mktemp("wheel") / "clara_rag-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("clara/__init__.py", "")
    return rehearse(tiny_checkpoint, f"--extra_package={wheel}", gpu=GPU), wheel


def test_compression_alone_runs_on_gpus(with_gpu: tuple[beam.Pipeline, Path]) -> None:
    pipeline, _ = with_gpu
    assert accelerated(pipeline) == {"CompressAndWrite"}
    hints = {step["accelerator"] for step in dataflow.graph(pipeline) if step["step"] == "CompressAndWrite"}
    assert hints == {"type:nvidia-l4;count:1;install-nvidia-driver"}
    # A shuffle on both sides: nothing else can be fused with it, and so land on a machine with a GPU.
    transforms = pipeline.runner.proto_pipeline.components.transforms.values()
    (compress,) = [t for t in transforms if t.unique_name == "CompressAndWrite"]
    feeding = [t for t in transforms if set(t.outputs.values()) & set(compress.inputs.values()) and not t.subtransforms]
    assert "beam:transform:group_by_key:v1" in {t.spec.urn for t in feeding}
    assert {t.unique_name.partition("/")[0] for t in consumers(pipeline, "CompressAndWrite")} == {"ReportsFromGPU"}


@pytest.mark.slow
def test_the_codebook_is_trained_on_a_gpu_too(tiny_checkpoint: Path) -> None:
    pipeline = rehearse(tiny_checkpoint, codec="pq8", gpu=GPU)
    assert accelerated(pipeline) == {"CompressAndWrite", "TrainCodebook"}
    assert {t.unique_name.partition("/")[0] for t in consumers(pipeline, "TrainCodebook")} == {"CodebookFromGPU"}


def test_one_process_has_the_gpu_of_a_machine(tiny_checkpoint: Path) -> None:
    for hint, found in (("", None), (GPU, True)):
        options = beam_options(NEEDED, dataflow.RUNNER, 0)
        dataflow.prepare_gpu(options, hint)
        assert options.view_as(DebugOptions).lookup_experiment("no_use_multiple_sdk_containers") == found
        assert options.view_as(SetupOptions).sdk_location == "container"
    for refused in (
        "--flexrs_goal=COST_OPTIMIZED",
        "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1",
    ):
        with pytest.raises(InputError, match=refused.partition("=")[0]):
            dataflow.prepare_gpu(beam_options([*NEEDED, refused], dataflow.RUNNER, 0), GPU)


def test_the_wheel_is_staged_for_every_environment(with_gpu: tuple[beam.Pipeline, Path]) -> None:
    pipeline, wheel = with_gpu
    environments = pipeline.runner.proto_pipeline.components.environments.values()
    assert len({environment.resource_hints.get(dataflow.ACCELERATOR, b"") for environment in environments}) == 2
    for environment in environments:
        staged = {
            beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(a.role_payload).staged_name
            for a in environment.dependencies
        }
        assert wheel.name in staged
        assert not staged & {"requirements.txt", "workflow.tar.gz", "pickled_main_session", "dataflow_python_sdk.tar"}
