"""Every shipped configuration plans a run, without any weights: `--dry-run` of each program."""

import json
import shutil
from pathlib import Path

import pytest

from clara.config.load import load
from clara.errors import InputError
from clara.model.artefact import check_given
from clara.storage.manifest import read_manifest, write_manifest
from tests.helpers.joint_world import World
from training import joint, pretrain

SHIPPED = sorted((Path(__file__).parents[2] / "infra" / "configs").glob("*.toml"))


def checkpoint_of(world: World, folder: Path, path: Path) -> Path:
    """A checkpoint that was made with the settings of a configuration; plans look at no weights."""
    config, copy = load(str(path)), Path(shutil.copytree(world.checkpoint, folder))
    manifest = read_manifest(copy) | {"model": config.model.model_dump(), "prompts": config.prompts.model_dump()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def artefacts(world: World, output: Path, checkpoint: Path | None = None) -> list[str]:
    paths = {
        "checkpoint": checkpoint or world.checkpoint,
        "memory": world.memory,
        "index": world.index,
        "questions": world.questions,
        "output": output,
        "backbone.path": "/where/the/weights/will/be",
    }
    return [part for name, path in paths.items() for part in ("--set", f"{name}={path}")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_joint_training_is_planned(
    world: World, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = checkpoint_of(world, tmp_path / "made", path)
    given = artefacts(world, tmp_path / "run", made)
    if load(str(path)).joint.denominator == "helpful":  # rows are known from UTILITIES, whose manifest a plan reads
        write_manifest(tmp_path / "utilities", kind="UTILITIES", files=[], recipe={})
        given += ["--set", f"utilities={tmp_path / 'utilities'}"]
    assert joint.main(["--dry-run", "--config", str(path), *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    launch, settings = shown["config"]["launch"], shown["config"]["joint"]
    assert shown["plan"]["ranks"] == (1 if launch["launcher"] == "local" else launch["num_workers"])
    assert (
        shown["plan"]["micro_batches_of_a_rank"] * shown["plan"]["ranks"] * settings["micro_batch"]
        == settings["questions_per_step"]
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_stages_before_are_planned(
    world: World, tmp_path: Path, path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = checkpoint_of(world, tmp_path / "made", path)
    inputs = [f"{name}={path}" for name, path in (("checkpoint", made), ("questions", world.questions))]
    given = [f"stage={stage}", f"output={tmp_path / 'run'}", "backbone.path=/where/the/weights/will/be", *inputs]
    arguments = [part for setting in given for part in ("--set", setting)]
    assert pretrain.main(["--dry-run", "--config", str(path), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == stage


def test_both_sizes_of_the_7B_model_are_shipped(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {}
    for name in ("mistral_7b", "mistral_7b_two_nodes"):
        path = SHIPPED[0].with_name(f"{name}.toml")
        made = checkpoint_of(world, tmp_path / name, path)
        joint.main(["--dry-run", "--config", str(path), *artefacts(world, tmp_path / "run", made)])
        shown = json.loads(capsys.readouterr().out)["config"]
        sizes[name] = shown["launch"]["num_workers"] + shown["joint"]["refresh"]["num_gpus"]
    assert sizes == {"mistral_7b": 8, "mistral_7b_two_nodes": 16}


@pytest.mark.parametrize("name", ["demo", "evidence", "retriever"])
def test_the_shipped_checkpoint_holds_what_the_configurations_that_start_from_it_say(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_given(SHIPPED[0].parents[1] / "start" / "checkpoint", load(str(SHIPPED[0].with_name(f"{name}.toml"))), [])
    assert not caplog.records


def test_questions_that_do_not_divide_among_the_ranks_are_found_before_anything_starts(
    world: World, tmp_path: Path
) -> None:
    arguments = ["--set", "launch.num_workers=3", *artefacts(world, tmp_path / "run")]
    with pytest.raises(InputError, match=r"32 rows a step are not a multiple of ranks x micro_batch = 3 x 2"):
        joint.main(["--dry-run", *arguments])
