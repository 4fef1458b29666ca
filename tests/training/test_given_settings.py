"""Settings that a CHECKPOINT holds: given beside it they are refused where they differ, never passed over."""

from pathlib import Path

import pytest

from clara.config.load import load
from clara.config.tree import Config
from clara.errors import InputError
from clara.model.artefact import check_given
from clara.storage.manifest import read_manifest
from tests.helpers.joint_world import World
from training import joint, pretrain

READ_BEFORE = ("stage", "checkpoint", "questions", "output", "backbone.dtype", "launch.threads")
"""Of the settings of `World.sets`, those that the stages before `joint` read."""


def planned(world: World, tmp_path: Path, stage: str, *arguments: str) -> int:
    given = world.sets(tmp_path / "run", stage=stage)
    if stage == "joint":
        return joint.main(["--dry-run", *given, *arguments])
    read = [setting for setting in given[1::2] if setting.partition("=")[0] in READ_BEFORE]
    return pretrain.main(["--dry-run", *(part for setting in read for part in ("--set", setting)), *arguments])


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "joint"])
@pytest.mark.parametrize(
    ("key", "given", "own"),
    [
        ("model.num_memory_tokens", "8", "4"),
        ("model.residual", "segment_mean", "'none'"),
        ("model.lora.rank", "16", "4"),  # also where it is the default
        ("model.lora.dropout", "0.1", "0.0"),
        ("prompts.answer_system", "Be brief.", "'You are a helpful assistant"),
        ("prompts.template_arguments.mood", "3", "None"),
    ],
)
def test_a_setting_that_the_checkpoint_has_otherwise_is_refused(
    world: World, tmp_path: Path, stage: str, key: str, given: str, own: str
) -> None:
    with pytest.raises(InputError, match=rf"{key} is '?{given}'?, the checkpoint's {own}") as caught:
        planned(world, tmp_path, stage, "--set", f"{key}={given}")
    assert f"{world.checkpoint} was made with its own" in str(caught.value)
    assert f"leave --set {key} out" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["instruct", "joint"])
def test_equal_settings_and_those_left_to_their_defaults_are_none_of_it(
    world: World, tmp_path: Path, stage: str
) -> None:
    file = tmp_path / "equal.toml"
    file.write_text(
        "[model]\nnum_memory_tokens = 4\nlora = { rank = 4, alpha = 8 }\n[prompts]\nkeep_system = true\n",
        encoding="utf-8",
    )
    assert planned(world, tmp_path, stage, "--config", str(file)) == 0
    assert load(None).model.model_dump() != read_manifest(world.checkpoint)["model"]
    assert planned(world, tmp_path, stage) == 0


def test_a_file_may_serve_checkpoints_of_other_makes_and_the_effective_settings_are_logged(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[model]\nnum_memory_tokens = 9\nlora = { alpha = 8.0, dropout = 0.5 }\n", encoding="utf-8")
    assert planned(world, tmp_path, "joint", "--config", str(file)) == 0
    (record,) = caplog.records
    for words in (
        "model.num_memory_tokens is 9, the checkpoint's 4; ",
        "model.lora.dropout is 0.5, the checkpoint's 0.0",
        "keeps them",
    ):
        assert words in record.getMessage()
    assert "alpha" not in record.getMessage()


def test_all_that_differ_are_named_at_once(world: World, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[model]\nnum_memory_tokens = 9\nlora = { alpha = 8.0, dropout = 0.5 }\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        planned(
            world,
            tmp_path,
            "joint",
            "--config",
            str(file),
            "--set",
            "model.markers=false",
            "--set",
            "model.lora={rank = 4, dropout = 0.5}",
        )
    for words in (
        "model.lora.dropout is 0.5",
        "model.markers is False",
        "leave --set model.markers, model.lora.dropout out",
    ):
        assert words in str(caught.value)
    for words in ("num_memory_tokens", "alpha", "rank"):
        assert words not in str(caught.value)


def test_a_checkpoint_from_nothing_takes_them(world: World, tmp_path: Path) -> None:
    assert planned(world, tmp_path, "pretrain", "--set", "checkpoint=", "--set", "model.num_memory_tokens=9") == 0


def test_what_was_given() -> None:
    config = load(None, ["model.lora.rank=16", "model.markers=true", "prompts.template_arguments.a=1", "seed=0"])
    assert dict(config.given()) == {
        "model.lora.rank": 16,
        "model.markers": True,
        "prompts.template_arguments.a": 1,
        "seed": 0,
    }
    assert dict(Config().given()) == {}
    assert dict(config.model.given("model.")) == {"model.lora.rank": 16, "model.markers": True}


def test_a_damaged_checkpoint_is_reported_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json, so this is no finished CHECKPOINT"):
        check_given(tmp_path, Config(), [])
