"""Run states: what is half written, of another run, or finds no room."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from clara.config.stages import Optimiser
from clara.errors import InputError
from clara.model.steps import Output
from tests.helpers.disk import full_disk
from training.loop import run_state
from training.loop.engine import LocalEngine
from training.loop.loop import Stage, run
from training.loop.run_state import RUN_STATE, TENSORS, RunStates, noted_states, run_states
from training.refresh.retention import in_run_states


class Batch:
    weight = 1.0


class Step(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 4)
        self.frozen = nn.Linear(size, 4).requires_grad_(False)

    def forward(self, batch: Batch, normaliser: float, num_rows: float) -> Output:
        return Output((self.layer(torch.ones(1, self.layer.in_features)) - 1.0).square().sum() / normaliser)


class Toy(Stage):
    name, steps, optimiser = "toy", 5, Optimiser(learning_rate=0.1)

    def __init__(self, size: int = 4) -> None:
        torch.manual_seed(0)
        self.module = Step(size)
        self.taken: dict[str, Any] = {}

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        return [(0.1, list(self.module.layer.parameters()))]

    def micro_batches(self, step: int, rank: int, world: int) -> list[Any]:
        return [Batch()]

    def rows(self, step: int) -> int:
        return 1

    def state(self) -> dict[str, Any]:
        return {"versions": {"current": {"number": 3}, "pending": {"number": 4}}}

    def restore(self, state: Any) -> None:
        self.taken = dict(state)


def train(directory: Path, stage: Toy) -> torch.Tensor:
    engine = LocalEngine(stage.module, stage.groups(), stage.optimiser)
    run(stage, engine, directory, seed=0, checkpoint_every=1)
    weight: torch.Tensor = stage.module.layer.weight.detach()
    return weight


def test_a_disk_without_room_costs_the_run_state_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = train(tmp_path / "whole", Toy(4096))
    with full_disk(16_384):
        found = train(tmp_path / "full", Toy(4096))
    assert torch.equal(found, wanted)
    assert caplog.text.count("run state: not written") == 4
    assert "training continues, and would resume after step 0" in caplog.text
    assert list((tmp_path / "full" / RUN_STATE).iterdir()) == []
    assert [p.parent.name for p in run_states(tmp_path / "whole")] == ["step-00000003", "step-00000004"]


def test_a_disk_that_hangs_ends_the_run_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(run_state, "WRITE_SECONDS", 3.0)
    monkeypatch.setattr(run_state, "save_file", lambda tensors, path: hanging.wait(60))
    began = time.monotonic()
    with pytest.raises(InputError, match=r"still being written after 3 s.*run the same command again"):
        train(tmp_path, Toy())
    # Once, though three ask: the next state, the end, and the loop on its way out.
    assert 3 <= time.monotonic() - began < 5.5
    assert not any(thread.name == "run-state" and not thread.daemon for thread in threading.enumerate())
    hanging.set()


def test_a_state_holds_what_trains_by_name_and_what_the_stage_adds(tmp_path: Path) -> None:
    train(tmp_path, Toy())
    tensors = load_file(run_states(tmp_path)[-1].parent / TENSORS)
    parts = ("weight", "exp_avg", "exp_avg_sq", "step")
    assert set(tensors) == {f"{part}.layer.{name}" for part in parts for name in ("weight", "bias")}
    assert float(tensors["step.layer.weight"]) == 4
    again = Toy()
    engine = LocalEngine(again.module, again.groups(), again.optimiser)
    assert RunStates(tmp_path, engine).resume(again) == 4
    assert again.taken == again.state()
    assert torch.equal(again.module.layer.weight, tensors["weight.layer.weight"])


def test_what_is_being_written_is_not_taken_up_but_nothing_it_names_may_go(tmp_path: Path) -> None:
    folder = tmp_path / RUN_STATE / "step-00000002"
    folder.mkdir(parents=True)
    (folder / "state.writing.json").write_text(json.dumps({"step": 2, "stage": Toy().state()}))
    assert run_states(tmp_path) == []
    assert in_run_states(noted_states(tmp_path)) == {3, 4}
    stage = Toy()
    engine = LocalEngine(stage.module, stage.groups(), stage.optimiser)
    assert RunStates(tmp_path, engine).resume(stage) == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [("other", r"do not train here.*give another output"), ("torn", "not readable.*run state before it")],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    train(tmp_path, Toy())
    stage = Toy()
    parameters = list(stage.module.layer.parameters())
    if damage == "torn":
        path = run_states(tmp_path)[-1].parent / TENSORS
        path.write_bytes(path.read_bytes()[:-9])
    else:
        parameters = parameters[:1]
    engine = LocalEngine(stage.module, [(0.1, parameters)], stage.optimiser)
    with pytest.raises(InputError, match=message):
        RunStates(tmp_path, engine).resume(stage)
