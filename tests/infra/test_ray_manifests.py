"""Manifests of Ray clusters: known fields, commands that their programs accept, and room for what they start."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from clara.config.load import load
from clara.config.tree import Config
from clara.errors import InputError
from clara.serving.command import parser as serve_parser
from infra.ray.manifests import RayCluster, RayJob, RayService, main, read_manifests
from tests.helpers.command_lines import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/ray"
APPLICATION = "/app/"
"""Where the images hold the packages."""


def job() -> RayJob:
    (found,) = read_manifests(FOLDER / "job.yaml")
    assert isinstance(found, RayJob)
    return found


def entrypoint() -> list[str]:
    return [word.removeprefix(APPLICATION) for word in shlex.split(job().spec.entrypoint)]


def configured() -> Config:
    words = entrypoint()
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    return load(str(ROOT / words[words.index("--config") + 1]), sets)


def test_every_manifest_has_known_fields_alone(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(FOLDER / f"{name}.yaml") for name in ("data", "cluster", "job", "service")]
    assert main(files) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(files)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("spec", "entryPoint"), "python", "spec.entryPoint: Extra inputs are not permitted, is 'python'"),
        (("spec", "backoffLimit"), "2", r"spec\.backoffLimit: Input should be a valid integer, is '2'"),
        (("kind",), "Rayjob", "kind is 'Rayjob'; expected one of RayCluster, RayJob"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), 3, "minReplicas ≤ replicas ≤ maxReplicas"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "groupName"), "gpu", "groupName occurs twice"),
        (
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "image"),
            "registry.example.com/clara-train:latest",
            "give a tag that is not latest, or a digest",
        ),
        (
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "name"),
            "other",
            r"volumeMounts \['data'\] are no volumes of the pod",
        ),
        (
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "securityContext", "runAsNonRoot"),
            False,
            "runAsNonRoot",
        ),
    ],
)
def test_a_wrong_field_is_named(place: tuple[str | int, ...], value: Any, message: str, tmp_path: Path) -> None:
    document: Any = yaml.safe_load((FOLDER / "job.yaml").read_text(encoding="utf-8"))
    below = document
    for part in place[:-1]:
        below = below[part]
    below[place[-1]] = value
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(InputError, match=message) as refused:
        read_manifests(file)
    assert str(refused.value).startswith(f"{file}: ")


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("kind: [", encoding="utf-8")
    with pytest.raises(InputError, match="no YAML that can be read") as refused:
        read_manifests(file)
    assert "\n" not in str(refused.value)


def test_the_command_of_the_job_is_accepted_by_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parse(entrypoint(), monkeypatch)
    for name in ("checkpoint", "questions", "memory", "index", "output"):
        assert getattr(configured(), name).startswith("/data/")


def test_ranks_and_refreshes_fill_the_groups_that_are_meant_for_them() -> None:
    cluster, config = job().spec.ray_cluster_spec, configured()
    head = cluster.head_group_spec.resources()
    gpu, refresh = (group.replicas for group in cluster.worker_group_specs)
    on_gpu, on_refresh = (group.resources() for group in cluster.worker_group_specs)
    assert head == {"CPU": 0, "GPU": 0}
    assert config.launch.num_workers == gpu * on_gpu["GPU"]
    assert config.launch.num_workers * config.launch.cpus_per_worker == gpu * on_gpu["CPU"]
    assert config.joint.refresh.num_workers == refresh
    assert config.joint.refresh.num_cpus == on_refresh["CPU"]
    assert config.joint.refresh.num_gpus == on_refresh["GPU"] == 0


def test_the_cluster_has_room_and_the_step_divides_among_its_ranks() -> None:
    cluster_shares = pytest.importorskip("training.launch.cluster_shares")
    from training.run.recipe import plan

    config, resources = configured(), job().spec.ray_cluster_spec.resources()
    assert cluster_shares.scaling(config, resources).num_workers == plan(config)["ranks"] == 16
    with pytest.raises(InputError, match="lower one of them"):
        cluster_shares.scaling(config, {**resources, "CPU": resources["CPU"] - 1})


def test_the_standing_cluster_is_that_of_the_one_node_configuration() -> None:
    (found,) = read_manifests(FOLDER / "cluster.yaml")
    assert isinstance(found, RayCluster)
    launch = load(str(ROOT / "infra/configs/mistral_7b.toml"), []).launch
    resources = found.spec.worker_group_specs[0].resources()
    assert resources == {"CPU": launch.num_workers * launch.cpus_per_worker, "GPU": launch.num_workers}


def test_versions_and_images_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ray, own = (re.search(expression, project) for expression in (r'"ray\[.*\]==([\d.]+)"', r'\nversion = "(.+)"'))
    assert ray
    assert own
    for file in sorted(FOLDER.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"rayVersion: (\S+)", text)) <= {ray[1]}
        assert set(re.findall(r"clara-train:(\S+)", text)) <= {own[1]}


def test_what_differs_from_place_to_place_is_marked() -> None:
    place = re.compile(r"example\.com|ami-|FILE-SYSTEM|storageClassName|region:|InstanceType: p5|accelerator:")
    for file in sorted(FOLDER.glob("*.yaml")):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not place.search(line) or "# change" in line, f"{file.name}: {line}"


def test_the_service_is_the_application_with_flags_that_clara_serve_has(tmp_path: Path) -> None:
    (found,) = read_manifests(FOLDER / "service.yaml")
    assert isinstance(found, RayService)
    (application,) = yaml.safe_load(found.spec.serve_config_v2)["applications"]
    assert application["import_path"] == "infra.ray.serving:application"
    words = [f"--{name}={value}" for name, value in application["args"].items()]
    assert serve_parser().parse_args(words).checkpoint == "/data/run/checkpoint"
    (group,) = found.spec.ray_cluster_config.worker_group_specs
    (deployment,) = application["deployments"]
    assert group.replicas == deployment["autoscaling_config"]["max_replicas"]
    assert group.resources()["CPU"] == deployment["ray_actor_options"]["num_cpus"]


# --- the cluster launcher ---


def launcher() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "launcher.yaml").read_text(encoding="utf-8"))
    return found


def test_the_launchers_file_fits_rays_own_schema() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(launcher()))
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        util.validate_config(util.prepare_config(launcher() | {"max_worker": 3}))


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_knows_the_flags_that_nodes_start_with(kind: str) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    (command,) = (line for line in launcher()[f"{kind}_start_ray_commands"] if "ray start" in line)
    words = shlex.split(command)
    assert words[:3] == ["RAY_AUTH_MODE=token", "ray", "start"]
    scripts.start.make_context("start", words[3:])
