"""Files that a job staged for its workers: options and wheels, from Beam's provision and artifact services."""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

_TIMEOUT_SECONDS = 60


def provision(endpoint: str, worker: str) -> Any:
    """The runner's information about a worker's job."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        return stub.GetProvisionInfo(
            request, timeout=_TIMEOUT_SECONDS, wait_for_ready=True, metadata=[("worker_id", worker)]
        ).info


def staged_name(artifact: Any) -> str:
    """File name under which an artifact was staged."""
    return str(beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name)


def fetch(artifact: Any, endpoint: str, worker: str) -> bytes:
    """The bytes of an artifact."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        request = beam_artifact_api_pb2.GetArtifactRequest(artifact=artifact)
        return b"".join(block.data for block in stub.GetArtifact(request, metadata=[("worker_id", worker)]))


def unpack_wheel(data: bytes, folder: Path) -> Path:
    """The folder of an unpacked wheel, renamed into place when complete: several threads may unpack it at once."""
    target = folder / hashlib.sha256(data).hexdigest()[:32]
    if target.is_dir():
        return target
    with tempfile.NamedTemporaryFile(dir=folder) as packed, tempfile.TemporaryDirectory(dir=folder) as parts:
        packed.write(data)
        packed.flush()
        with zipfile.ZipFile(packed.name) as wheel:
            wheel.extractall(Path(parts) / "wheel")
        try:
            os.rename(Path(parts) / "wheel", target)
        except OSError:
            if not target.is_dir():  # otherwise another thread has unpacked it
                raise
    return target


def staged_wheels(info: Any, endpoint: str, worker: str, folder: Path) -> list[Path]:
    """Folders with the wheels among a job's dependencies."""
    wheels = [artifact for artifact in info.dependencies if staged_name(artifact).endswith(".whl")]
    return [
        unpack_wheel(fetch(artifact, endpoint or info.artifact_endpoint.url, worker), folder) for artifact in wheels
    ]


def _described(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


def worker_environment(request: Any, info: Any) -> dict[str, str]:
    """Environment variables of Beam's worker: its id, the runner's endpoints, and the job's options.

    Args:
        request: the runner's `StartWorkerRequest`.
        info: as returned by `provision`.
    """
    found = {
        "WORKER_ID": request.worker_id,
        "CONTROL_API_SERVICE_DESCRIPTOR": _described(request.control_endpoint.url),
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if request.logging_endpoint.url:
        found["LOGGING_API_SERVICE_DESCRIPTOR"] = _described(request.logging_endpoint.url)
    return found
