"""The evidence run: its commands parse, its report repeats the evaluations, a start with fewer slots loads."""

import argparse
import itertools
from pathlib import Path

import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone
from clara.errors import InputError
from clara.intervals import PairedTest
from clara.model.checkpoint import load_checkpoint
from infra.evidence import command as evidence
from infra.evidence import data as evidence_data
from infra.evidence import fewer_slots
from infra.evidence.rows import TOGETHER, compare, systems_of, table
from infra.evidence.steps import CONFIG, QUICK, TRAINED, WHOLE, Evidence, Size
from infra.evidence.targets import Target, targets
from pipelines.build_memory import command as build_memory
from pipelines.score_utilities import command as score_utilities
from tests.helpers.tiny import NUM_MEMORY_TOKENS, build_model
from training import evaluate


def given(path: Path, size: Size = WHOLE) -> Evidence:
    return Evidence(path / "data", path / "run", size, backbone="base", dense="dense", dtype="float32")


@pytest.mark.parametrize("size", [WHOLE, QUICK])
def test_every_command_is_taken_by_its_program(tmp_path: Path, size: Size) -> None:
    parsers = {
        "infra.evidence.data": evidence_data.parser,
        "pipelines.build_memory": build_memory.parser,
        "pipelines.score_utilities": score_utilities.parser,
        "training.evaluate": evaluate.parser,
    }
    steps = given(tmp_path, size).steps()
    assert {*TRAINED, "pretrain", "instruct", "evaluate", "alignment", "report"} <= steps.keys()
    checked = 0
    for step in steps.values():
        command = step.command[1:]
        if command[0] == "-m" and command[1] in parsers:
            assert isinstance(parsers[command[1]]().parse_args(command[2:]), argparse.Namespace)
            checked += 1
        elif command[0].startswith("training/"):
            sets = [value for flag, value in itertools.pairwise(command) if flag == "--set"]
            config = load(CONFIG, sets)
            assert config.joint.num_selected == 2
            checked += 1
    assert checked >= 12


def test_systems_differ_in_their_loss_alone(tmp_path: Path) -> None:
    steps = given(tmp_path).steps()

    def joint(name: str) -> dict[str, object]:
        command = steps[name].command
        config = load(CONFIG, [value for flag, value in itertools.pairwise(command) if flag == "--set"])
        return {"joint": config.joint.model_dump(), "inputs": [config.checkpoint, config.memory]}

    of_joint = joint("joint")
    for name, differing in (
        ("labels", {"labels_weight", "utility_weight"}),
        ("cut", {"cut_gradient", "steps"}),
        ("live", {"micro_batch", "steps"}),
        ("shuffled", set()),
    ):
        other = joint(name)
        assert other["inputs"] == of_joint["inputs"]
        assert {k for k, v in other["joint"].items() if v != of_joint["joint"][k]} == differing  # type: ignore[attr-defined, index]


def test_an_unknown_step_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--only 'nothing': no such step; there are .*pretrain"):
        evidence.main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--only", "nothing"])


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "joint: python training/joint.py" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# --- fewer slots -----------------------------------------------------------------------------------------------------


def test_fewer_slots_are_means_of_neighbours_and_adapters_stay(
    tiny_checkpoint: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    command = [
        "--checkpoint",
        str(tiny_checkpoint),
        "--backbone",
        str(tiny_backbone),
        "--memory-tokens",
        "2",
        "--output",
        str(tmp_path / "fewer"),
    ]
    assert fewer_slots.main(command) == 0
    old, new = (
        load_checkpoint(path, Backbone(path=str(tiny_backbone), dtype="float32"))
        for path in (tiny_checkpoint, tmp_path / "fewer")
    )
    assert new.num_memory_tokens == 2
    assert torch.allclose(new.slots.memory_tokens[1], old.slots.memory_tokens[NUM_MEMORY_TOKENS // 2 :].mean(dim=0))
    for role in ("compressor", "generator"):
        for before, after in zip(old.role_parameters(role), new.role_parameters(role), strict=True):
            assert torch.equal(before, after)
    assert new.compress([[5, 6, 7]]).shape == (1, 2, old.hidden_size)


@pytest.mark.parametrize("count", [0, 3, 8])
def test_a_number_that_does_not_divide_is_refused(tiny_backbone: Path, count: int) -> None:
    with pytest.raises(
        InputError, match=f"--memory-tokens {count}: the checkpoint has {NUM_MEMORY_TOKENS}; choose a divisor"
    ):
        fewer_slots.with_fewer_slots(build_model(tiny_backbone), count)


# --- report ----------------------------------------------------------------------------------------------------------


def rows() -> list[dict[str, object]]:
    """Two questions of each published set; `joint` finds more than `start`, and BM25 as much as `joint`."""
    found = {"start": 0.0, "bm25/start": 0.5, "joint": 0.5, "bm25/joint": 0.5}
    return [
        {
            "system": system,
            "split": split,
            "question_id": f"{split}{n}",
            "pool.recall@2": value + n / 4,
            "pool.log_likelihood": -5.0 + value,
        }
        for system, value in found.items()
        for split in ("2wiki", "hotpotqa", "musique", "scp")
        for n in range(2)
    ]


def test_baselines_are_read_by_the_first_systems_generator() -> None:
    assert systems_of(rows()) == ["bm25", "start", "joint"]
    heading, lines = table(rows(), ["bm25", "joint"], {"all": (TOGETHER, "pool.recall@2")})
    assert heading == ["system", "all"]
    assert [line[1].split()[0] for line in lines] == ["0.625", "0.625"]
    test = compare(rows(), "joint", "start", TOGETHER, "pool.recall@2")
    assert test is not None
    assert (test.difference, test.num_questions) == (0.5, 6)
    assert compare(rows(), "joint", "bm25", "2wiki", "pool.recall@2").difference == 0.0  # type: ignore[union-attr]
    assert compare(rows(), "joint", "bm25", "2wiki", "nothing.measured") is None


def test_targets_say_whether_and_by_how_much() -> None:
    lines = targets(rows(), [])
    assert any(
        line.startswith("joint beats its start by 0.15 of Recall@2, 2wiki: +0.500") and line.endswith("reached")
        for line in lines
    )
    assert any("beats bm25" in line and line.endswith("not shown: the interval holds 0") for line in lines)
    assert any("control cut" in line and line.endswith("not measured") for line in lines)
    assert Target("a", PairedTest(0.1, 0.05, 0.2, 0.01, 9), 0.15).outcome().endswith("missed by 0.050")
    assert Target("a", PairedTest(0.2, -0.05, 0.4, 0.2, 9), 0.15).outcome().endswith("the interval holds 0")
