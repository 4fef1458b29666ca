"""Fields of pods that the manifests of this folder use; every other field is an error."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
GPU = "nvidia.com/gpu"


class Fields(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


class Metadata(Fields):
    """Metadata of an object or a pod."""

    name: Name | None = None
    labels: dict[str, str] = {}


class Resources(Fields):
    """What a container asks for and is held to; KubeRay gives Ray the limits."""

    requests: dict[str, Quantity | int]
    limits: dict[str, Quantity | int] = {}


class Port(Fields):
    """A port of a container."""

    name: Name
    container_port: Annotated[int, Field(ge=1, le=65535)]


class Mount(Fields):
    """A volume's place in a container."""

    name: Name
    mount_path: Annotated[str, Field(pattern="^/")]
    read_only: bool = False


class Variable(Fields):
    """An environment variable."""

    name: str
    value: str


class Container(Fields):
    """A container of a pod."""

    name: Name
    image: Annotated[str, Field(pattern=r"^[\w.-]+(:\d+)?(/[\w.-]+)+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$")]
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    ports: list[Port] = []
    resources: Resources
    volume_mounts: list[Mount] = []

    @model_validator(mode="after")
    def _pinned(self) -> "Container":
        tag = self.image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        if "@" not in self.image and tag in ("", "latest"):
            raise ValueError(f"image {self.image}: give a tag that is not latest, or a digest")
        return self


class Claim(Fields):
    """The claim of a volume."""

    claim_name: Name


class Volume(Fields):
    """A volume of a pod."""

    name: Name
    persistent_volume_claim: Claim


class Toleration(Fields):
    """A taint that a pod accepts."""

    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"]


class Security(Fields):
    """The user of a pod's processes."""

    run_as_non_root: Literal[True]
    run_as_user: Annotated[int, Field(ge=1)]
    fs_group: Annotated[int, Field(ge=1)]


class Pod(Fields):
    """The specification of a pod."""

    security_context: Security
    service_account_name: Name | None = None
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts_exist(self) -> "Pod":
        known = {volume.name for volume in self.volumes}
        for container in self.containers:
            if missing := [mount.name for mount in container.volume_mounts if mount.name not in known]:
                raise ValueError(f"container {container.name}: volumeMounts {missing} are no volumes of the pod")
        return self


class Template(Fields):
    """The pods of a group."""

    metadata: Metadata = Metadata()
    spec: Pod
