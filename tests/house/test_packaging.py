"""The wheel is complete, and Dockerfile, pyproject, Makefile and infra/ say the same versions, images and flags."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.own_wheel import NAME, build_wheel, pack_wheel
from infra.dataflow import submit as dataflow_submit
from infra.dataflow import template
from infra.images.locks import STAGES
from infra.spark import submit as spark_submit
from pipelines.build_memory.command import parser

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
METADATA = json.loads((ROOT / "infra/dataflow/metadata.json").read_text(encoding="utf-8"))
PARAMETERS = {parameter["name"]: parameter for parameter in METADATA["parameters"]}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    return folder / "site"


def test_the_wheel_holds_every_file_that_the_packages_read(installed: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "clara", "pipelines", "training", "infra"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    not_read = re.compile(r"infra/(mlflow|results|start)/|README\.md$|infra/demo-packages\.txt$")
    wanted = [name for name in names.stdout.split("\n") if name and not not_read.search(name)]
    wanted += [f"infra/results/{name}.json" for name in ("codecs/results", "index/1000k-rows", "plan/results")]
    assert len(wanted) > 100
    assert [name for name in wanted if not (installed / name).is_file()] == []


def test_a_packed_wheel_is_the_built_one_under_a_version_of_its_content(installed: Path, tmp_path: Path) -> None:
    wheel = pack_wheel(tmp_path)
    assert re.fullmatch(r"clara_rag-[\d.]+\+src\.[0-9a-f]{12}-py3-none-any\.whl", wheel.name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(tmp_path / "site"), str(wheel)], check=True)

    def files(folder: Path) -> dict[str, bytes]:
        names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {
            str(n): (folder / n).read_bytes() for n in names if n.suffix != ".pyc" and "dist-info" not in n.parts[0]
        }

    own, built = files(tmp_path / "site"), files(installed)
    assert {name for name in own.keys() ^ built.keys() if not name.startswith("infra/mlflow/")} == set()
    assert all(own[name] == built[name] for name in built if not name.startswith("bin/"))
    assert pack_wheel(tmp_path).name == wheel.name


def test_a_wheel_is_packed_from_the_metadata_of_an_egg_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed in place, the package has an egg-info beside its sources, which Python may find first."""
    egg, own = tmp_path / "clara_rag.egg-info", importlib.metadata.distribution(NAME)
    egg.mkdir()
    described = own.read_text("METADATA") or own.read_text("PKG-INFO")
    assert described is not None
    (egg / "PKG-INFO").write_text(described, encoding="utf-8")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: importlib.metadata.PathDistribution(egg))
    wheel = pack_wheel(tmp_path / "wheels")
    version = wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as file:
        metadata = file.read(f"clara_rag-{version}.dist-info/METADATA").decode()
    assert f"\nVersion: {version}\n" in metadata


def test_the_wheel_runs_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    said = (
        "import sys, pipelines, infra; print(pipelines.__file__); "
        "from pipelines.build_memory.command import main; main(['--help'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", said], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(str(installed))
    assert "--gpu-type" in ran.stdout


def test_an_older_build_beside_the_sources_does_not_get_into_the_wheel(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")} == {
        "clara",
        "pipelines",
        "training",
        "infra",
        "bin",  # the console command
    }


def version_of(name: str) -> str:
    """The version that pyproject pins a package to, in whichever list, the same in all."""
    found = {
        requirement.partition("==")[2]
        for requirements in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for requirement in requirements
        if re.split(r"[\[=]", requirement)[0] == name
    }
    assert len(found) == 1, (name, found)
    return found.pop()


def test_beam_and_python_are_the_same_versions_everywhere() -> None:
    beam = version_of("apache-beam")
    assert f"FROM apache/beam_python3.11_sdk:{beam}${{SDK_DIGEST}} AS sdk\n" in DOCKERFILE
    assert f"ARG TORCH_VERSION={version_of('torch')}\n" in DOCKERFILE
    assert importlib.metadata.version("apache-beam") == beam
    minor = re.fullmatch(r">=(3\.\d+),<3\.\d+", PROJECT["requires-python"])
    assert minor
    assert set(re.findall(r"FROM python:([\d.]+)-slim", DOCKERFILE)) == {minor[1]}
    assert set(re.findall(r"beam_python([\d.]+)_sdk", DOCKERFILE)) == {minor[1]}
    assert set(re.findall(r"python(\d+)-template-launcher-base", DOCKERFILE)) == {minor[1].replace(".", "")}
    assert f"apache-beam {beam}".lower() in (ROOT / "infra/spark/README.md").read_text(
        encoding="utf-8"
    ).lower().replace("apache beam", "apache-beam")


def test_images_install_locked_requirements_alone_and_hold_what_a_worker_imports() -> None:
    stages = dict(re.findall(r"FROM \S+ AS (\w+)\n((?:(?!FROM ).*\n)*)", DOCKERFILE))
    assert {"base", "train", "beam", "dataflow"} <= set(stages)
    for stage in ("train", "beam"):
        extras = set(STAGES[stage])
        assert extras <= set(PROJECT["optional-dependencies"])
        assert {"beam", "gcp"} <= extras
        assert f'"requirements/{stage}${{TORCH_INDEX:+-cpu}}.txt"' in stages[stage]
        assert "pip check" in stages[stage]
    assert {re.split(r"[\[=]", requirement)[0] for requirement in PROJECT["dependencies"]} >= {
        "torch",
        "transformers",
        "safetensors",
    }
    # Nothing is installed when a container starts, and no sources are in its working directory, where they would hide a
    # staged wheel.
    assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in stages["beam"]
    assert stages["beam"].index("WORKDIR /\n") < stages["beam"].index("ENTRYPOINT")
    assert "pip" not in stages["dataflow"]
    copied = set(re.findall(r"COPY (\w+) \1\n", stages["base"]))
    assert copied == {"requirements", "clara", "pipelines", "training", "infra"}


def test_what_the_documents_name_is_there() -> None:
    for readme in ("infra/spark/README.md", "infra/dataflow/README.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert set(re.findall(r"--target (\w+)", text)) <= set(re.findall(r"AS (\w+)\n", DOCKERFILE))
        for module in re.findall(r"python -m ((?:infra|pipelines)[\w.]+)", text):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
        for wheel in re.findall(r"clara_rag-([\d.]+)-py3", text):
            assert wheel == PROJECT["version"]
        flags = {option for action in parser()._actions for option in action.option_strings}
        for job in re.findall(r"^ +build_memory (.*(?:\\\n.*)*)", text, re.MULTILINE):
            assert set(re.findall(r"--[\w-]+", job)) <= flags
    template_file = re.search(r"COPY (infra/dataflow/\w+\.py) (/template/\w+\.py)\n", DOCKERFILE)
    assert template_file
    assert (ROOT / template_file[1]).is_file()
    assert f"FLEX_TEMPLATE_PYTHON_PY_FILE={template_file[2]}" in DOCKERFILE


# --- the flex template ---

_EXAMPLES = {
    "input": ("gs://bucket/corpus/*.jsonl.gz,s3://other/more.jsonl", "corpus.jsonl"),
    "output": ("gs://bucket/memory", "gs://bucket"),
    "checkpoint": ("/models/checkpoint", "checkpoint"),
    "sdk_container_image": ("europe-west4-docker.pkg.dev/project/repository/clara-dataflow:1", "an image"),
    "update": ("gs://bucket/memory-1", "/data/memory"),
    "language": ("en,de", "English"),
    "near_duplicates": ("0.8", "8"),
    "gpu_type": ("nvidia-tesla-t4", "T4"),
    "gpu_count": ("2", "0"),
    "max_failures": ("-1", "-2"),
    "overwrite": ("true", "yes"),
    "codec": ("pq8", "pq16"),
    "device": ("cuda", "cuda:0"),
}


def matches(name: str, value: str) -> bool:
    return all(re.fullmatch(expression, value) for expression in PARAMETERS[name]["regexes"])


def test_the_template_has_the_commands_flags() -> None:
    flags = {action.dest: action for action in parser()._actions if action.dest != "help"}
    of_the_engine = {"runner", "num_workers", "no_wait", "dry_run"}
    assert set(PARAMETERS) - {"sdk_container_image"} <= set(flags) - of_the_engine
    assert {flag for flag, action in flags.items() if action.required} <= set(PARAMETERS)
    for name, parameter in PARAMETERS.items():
        assert {"name", "label", "helpText", "paramType", "regexes"} <= set(parameter)
        if name in flags:
            assert bool(parameter.get("isOptional")) != flags[name].required, name
            for choice in flags[name].choices or []:
                assert matches(name, choice), (name, choice)
            default = flags[name].default
            assert (
                default in (None, "", [])
                or isinstance(default, bool)
                or matches(name, f"{default:g}" if isinstance(default, float) else str(default))
            ), name


@pytest.mark.parametrize("name", _EXAMPLES)
def test_parameters_take_what_is_right_and_refuse_what_is_not(name: str) -> None:
    right, wrong = _EXAMPLES[name]
    assert matches(name, right)
    assert not matches(name, wrong)


def test_dataflow_knows_every_key_of_the_template() -> None:
    types = pytest.importorskip("google.cloud.dataflow_v1beta3").types
    parsed = types.TemplateMetadata.from_json(json.dumps({key: METADATA[key] for key in ("name", "description")}))
    assert parsed.name == METADATA["name"]
    for parameter in METADATA["parameters"]:
        known = {key: value for key, value in parameter.items() if key not in ("paramType", "helpText", "isOptional")}
        read = types.ParameterMetadata.from_json(
            json.dumps(known | {"helpText": parameter["helpText"], "isOptional": parameter.get("isOptional", False)})
        )
        assert list(read.regexes) == parameter["regexes"]
        assert parameter["paramType"] in ("TEXT", "NUMBER", "BOOLEAN")


def test_template_parameters_become_the_commands_arguments() -> None:
    given = [
        "--input=gs://a/*.jsonl,gs://b/c.jsonl",
        "--output=gs://a/m",
        "--checkpoint=/c",
        "--max_tokens=96",
        "--overwrite=true",
        "--language=en,de",
    ]
    made = template.to_arguments([*given, "--project=p", "--temp_location=gs://a/t", "--runner=DataflowRunner"])
    args, rest = parser().parse_known_args(made)
    assert (args.input, args.max_tokens, args.overwrite, args.language) == (
        ["gs://a/*.jsonl", "gs://b/c.jsonl"],
        96,
        True,
        ["en", "de"],
    )
    assert (args.runner, args.no_wait) == ("DataflowRunner", True)
    assert rest == ["--project=p", "--temp_location=gs://a/t"]
    with pytest.raises(InputError, match="expected true or false"):
        template.to_arguments(["--overwrite=yes"])
    with pytest.raises(InputError, match="a parameter without a value"):
        template.to_arguments(["--limit"])


# --- the submit commands ---


def test_submit_commands_say_what_they_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        spark_submit.main(
            ["--master=spark://head:7077", "--processes=8", "--dry-run", "build_memory", "--output", "/shared/memory"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "pipelines.build_memory --output /shared/memory --runner=SparkRunner --spark_master_url=spark://head:7077"
        in said
    )
    assert "--environment_type=EXTERNAL --environment_config=localhost:50000" in said
    given = [
        "--project=p",
        "--region=r",
        "--bucket=gs://b/jobs/",
        "--image=i",
        "--check",
        "--dry-run",
        "build_memory",
        "--output",
        "gs://b/memory",
    ]
    assert dataflow_submit.main(given) == 0
    said = capsys.readouterr().out
    assert (
        "--temp_location=gs://b/jobs/temp --staging_location=gs://b/jobs/staging --sdk_container_image=i --dry_run=True"
        in said
    )
    with pytest.raises(InputError, match="--bucket /tmp: expected gs://"):
        dataflow_submit.main(["--project=p", "--region=r", "--bucket=/tmp", "--image=i", "build_memory"])


def test_a_job_is_submitted_with_one_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("pipelines.build_memory.command.main", lambda argv: seen.extend(argv) or 0)
    wheel = tmp_path / "clara_rag-0.1.0-py3-none-any.whl"
    with pytest.raises(InputError, match="no such file"):
        spark_submit.main(["--master=local", f"--wheel={wheel}", "build_memory"])
    zipfile.ZipFile(wheel, "w").close()
    assert spark_submit.main(["--master=local[2]", f"--wheel={wheel}", "build_memory", "--limit=1"]) == 0
    assert seen == [
        "--limit=1",
        "--runner=SparkRunner",
        "--spark_master_url=local[2]",
        "--sdk_worker_parallelism=1",
        f"--extra_package={wheel}",
    ]
