"""What `clara submit ray` sends: the packages and the configuration, by Ray's own packaging, under Ray's limit."""

import shlex
import sys
import zipfile
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.own_wheel import PACKAGES
from infra.ray import submit
from training import pretrain
from training.run.recipe import JOB_VARIABLE

PATHS = ["--set", "memory=/data/memory", "--set", "output=/data/run", "--set", "checkpoint=s3://bucket/checkpoint"]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged")
    submit.stage(folder)
    return folder


def test_ray_packs_the_packages_and_nothing_else(staged: Path, tmp_path: Path) -> None:
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    target = tmp_path / "package.zip"
    packaging.create_package(str(staged), target, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(target) as package:
        names = [Path(name) for name in package.namelist()]
        packed = sum(member.file_size for member in package.infolist())
    assert {name.parts[0] for name in names} == set(PACKAGES)
    assert {"training/joint.py", "infra/configs/mistral_7b.toml", "clara/py.typed"} <= {str(name) for name in names}
    assert not [name for name in names if {"results", "start", "__pycache__"} & set(name.parts)]
    assert packed == submit.checked_size(staged)
    assert packed <= target.stat().st_size < 1.2 * packed < submit.MAX_BYTES / 10


def test_the_limit_is_rays() -> None:
    constants = pytest.importorskip("ray._private.ray_constants")
    assert constants.DASHBOARD_CLIENT_MAX_SIZE == submit.MAX_BYTES


def test_a_directory_over_the_limit_is_refused_and_its_largest_files_are_named_in_one_line(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"part-{number}.safetensors").open("wb").truncate((20 + number) * 2**20)
    with pytest.raises(InputError) as refused:
        submit.checked_size(tmp_path)
    said = str(refused.value)
    assert "\n" not in said
    assert "161.0 MiB, Ray takes less than 100" in said
    assert "part-6.safetensors 26.0 MiB, part-5.safetensors 25.0 MiB" in said
    assert "part-1" not in said


def test_the_command_ends_with_the_job_and_its_configuration_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[launch]\nlauncher = "local"\ngpu = true\n', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["submit"])
    given = ["--address=http://head:8265", "--no-wait", "--submission-id=a", "--dry-run", "joint", "--config", str(own)]
    assert submit.main([*given, *PATHS, "--set", 'retrieval.dense_text_prompt="a passage: "']) == 0
    size, command = capsys.readouterr().out.splitlines()
    words = shlex.split(command)
    assert size.endswith("MiB of clara, pipelines, training, infra")
    assert words[:3] == ["ray", "job", "submit"]
    assert {"--address=http://head:8265", "--no-wait", "--submission-id=a", "--entrypoint-num-gpus=1"} <= set(words)
    job = words[words.index("--") + 1 :]
    assert job[:4] == ["python", "training/joint.py", "--config", "submitted/own.toml"]
    assert job[-1] == 'retrieval.dense_text_prompt="a passage: "'


def test_the_configuration_lands_in_the_working_directory(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("seed = 3\n", encoding="utf-8")
    target = tmp_path / "target"
    target.mkdir()
    assert submit.ship_config(str(own), [f"--config={own}", "--dry-run"], target) == [
        "--config=submitted/own.toml",
        "--dry-run",
    ]
    assert (target / "submitted/own.toml").read_text(encoding="utf-8") == "seed = 3\n"
    assert submit.ship_config("", ["--dry-run"], target) == ["--dry-run"]


def test_what_is_named_is_sent_too(tmp_path: Path) -> None:
    submit.stage(tmp_path, ["docs/pictures", "LICENSE"])
    assert (tmp_path / "LICENSE").is_file()
    assert list((tmp_path / "docs/pictures").iterdir())
    with pytest.raises(InputError, match=r"--include \.\./elsewhere: no such file or folder in "):
        submit.stage(tmp_path / "other", ["../elsewhere"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["joint", "--set", "memory=artefacts/memory"], "memory is 'artefacts/memory': a submitted job runs in a copy"),
        (["pretrain", "--set", "stage=pretrain", "--set", "examples=e"], "examples is 'e': a submitted job runs in"),
        (["joint", "--set", "joint.step=3"], "joint.step"),
    ],
)
def test_what_would_fail_on_the_cluster_is_refused_before_anything_is_sent(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "stage", lambda *_: pytest.fail("staged"))
    with pytest.raises(InputError, match=message):
        submit.main(arguments)


@pytest.mark.parametrize(
    ("job", "sets", "gpus"),
    [
        ("joint", ["launch.gpu=true"], 0),
        ("joint", ["launch.gpu=true", "launch.launcher=local"], 1),
        ("pretrain", ["launch.gpu=true"], 1),
        ("pretrain", [], 0),
    ],
)
def test_a_gpu_is_reserved_for_a_command_that_trains_itself(job: str, sets: list[str], gpus: int) -> None:
    from clara.config.load import load

    assert submit.own_gpus(job, load(None, sets)) == gpus


def test_pretraining_refuses_a_relative_path_on_the_cluster_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(InputError, match="examples is 'e': a submitted job runs in"):
        pretrain.main(["--set", "stage=pretrain", "--set", "examples=e", "--set", "output=/data/run"])
