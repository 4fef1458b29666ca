"""Check Kubernetes manifests without a cluster: fields, types, and what refers to what.

    python -m infra.ray.manifests infra/ray/job.yaml …

Knows the fields that this folder uses, of KubeRay's API ray.io/v1 (1.5) and of pods; another field is an error, also
where Kubernetes would know it: add it here. The server's own check remains `kubectl apply --dry-run=server`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line
from infra.ray.pods import GPU, Fields, Metadata, Name, Resources, Template


class Group(Fields):
    """The head; its pod's first container runs Ray."""

    ray_start_params: dict[str, str]
    template: Template

    def resources(self) -> dict[str, float]:
        """CPU and GPU that one pod brings to the cluster.

        `rayStartParams` before limits, as KubeRay starts Ray.
        """
        limits = self.template.spec.containers[0].resources.limits
        found = {"CPU": float(limits.get("cpu", 0)), "GPU": float(limits.get(GPU, 0))}
        given = {"CPU": "num-cpus", "GPU": "num-gpus"}
        return {name: float(self.ray_start_params.get(given[name], value)) for name, value in found.items()}


class WorkerGroup(Group):
    """Pods of one kind."""

    group_name: Name
    replicas: Annotated[int, Field(ge=0)]
    min_replicas: Annotated[int, Field(ge=0)]
    max_replicas: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerGroup":
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(f"group {self.group_name}: expected minReplicas ≤ replicas ≤ maxReplicas")
        return self


class Authentication(Fields):
    """How clients of the cluster are known."""

    mode: Literal["token"]


class Cluster(Fields):
    """The specification of a Ray cluster."""

    ray_version: str
    auth_options: Authentication
    head_group_spec: Group
    worker_group_specs: Annotated[list[WorkerGroup], Field(min_length=1)]

    def resources(self) -> dict[str, float]:
        """What Ray reports as the whole cluster's, when all replicas are there."""
        total = self.head_group_spec.resources()
        for group in self.worker_group_specs:
            total = {name: total[name] + group.replicas * value for name, value in group.resources().items()}
        return total

    @model_validator(mode="after")
    def _distinct(self) -> "Cluster":
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"workerGroupSpecs: groupName occurs twice in {names}")
        return self


class Job(Fields):
    """The specification of a run, on a cluster that is made for it."""

    entrypoint: Annotated[str, Field(min_length=1)]
    submission_mode: Literal["K8sJobMode", "HTTPMode"]
    backoff_limit: Annotated[int, Field(ge=0)] = 0
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = 0
    ray_cluster_spec: Cluster


class Service(Fields):
    """The specification of a served application; `serve_config_v2` is YAML in a string."""

    serve_config_v2: Annotated[str, Field(alias="serveConfigV2")]
    ray_cluster_config: Cluster


class ClaimSpec(Fields):
    """The specification of a volume's claim."""

    access_modes: list[Literal["ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce"]]
    storage_class_name: str
    resources: Resources


class RayCluster(Fields):
    """Manifest of a cluster that keeps running."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: Cluster


class RayJob(Fields):
    """Manifest of a job that starts its cluster."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: Job


class RayService(Fields):
    """Manifest of an application of Ray Serve."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: Service


class VolumeClaim(Fields):
    """A volume that pods share."""

    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


Manifest = RayCluster | RayJob | RayService | VolumeClaim
_KINDS: dict[str, type[Manifest]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "RayService": RayService,
    "PersistentVolumeClaim": VolumeClaim,
}


def read_manifests(file: Path) -> list[Manifest]:
    """The objects of a YAML file.

    Raises:
        InputError: it is no YAML; or an object has another kind, an unknown field, or a value that does not fit.
    """
    try:
        documents = [found for found in yaml.safe_load_all(file.read_text(encoding="utf-8")) if found is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: no YAML that can be read ({' '.join(str(error).split())})") from error
    return [_read(file, document) for document in documents]


def _read(file: Path, document: Any) -> Manifest:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in _KINDS:
        raise InputError(f"{file}: kind is {kind!r}; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].model_validate(document)
    except ValidationError as error:
        raise InputError(f"{file}: {'; '.join(_lines(error))}") from error


def _lines(error: ValidationError) -> Iterator[str]:
    for found in error.errors():
        given = "" if isinstance(found["input"], dict | list) else f", is {found['input']!r}"
        yield f"{'.'.join(map(str, found['loc']))}: {found['msg']}{given}"


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parse = plain_parser("infra.ray.manifests", __doc__)
    parse.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML with one or more objects")
    for file in parse.parse_args(argv).files:
        for found in read_manifests(file):
            print(f"{file}: {found.kind} {found.metadata.name}: all fields are known")
    return 0


if __name__ == "__main__":
    command_line(main)
