"""Joint training that diverges: queries that are not finite are caught before the search."""

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from clara.errors import InputError
from tests.helpers.joint_world import World
from training import joint
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.loop.loop import NotFiniteError
from training.loop.run_state import run_states

DIVERGING = {
    "joint__optimiser__learning_rate": 1e30,
    "joint__optimiser__gradient_clip": 0,
    "joint__checkpoint_every": 1,
}


def explode(monkeypatch: pytest.MonkeyPatch, update: int) -> Callable[..., float]:
    """Let one update make the weights infinite; returns the sound one."""
    sound, made = LocalEngine.update, itertools.count(1)

    def updated(self: LocalEngine, factors: Sequence[float]) -> float:
        norm = sound(self, factors)
        if next(made) == update:
            for group in self._optimiser.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(float("inf"))
        return norm

    monkeypatch.setattr(LocalEngine, "update", updated)
    return sound


def train(world: World, output: Path, **values: object) -> int:
    return joint.main(["--launcher", "local", *world.sets(output, **DIVERGING | values)])


# By the INDEX alone, which finds nothing for such a query; by BM25 alone, where nothing is searched with it; by both.
@pytest.mark.parametrize("sources", [(4, 0), (0, 4), (4, 2)])
def test_it_stops_in_one_line_and_leaves_no_run_state_of_such_weights(
    world: World, tmp_path: Path, sources: tuple[int, int]
) -> None:
    values = dict(zip(("joint__from_index", "joint__from_bm25"), sources, strict=True))
    with pytest.raises(NotFiniteError, match=r"joint: the loss is nan at step 2; lower the learning rate") as stopped:
        train(world, tmp_path, **values)
    assert "\n" not in str(stopped.value)
    (run,) = tmp_path.glob("run-*")
    # The one after step 1 held the weights that broke step 2.
    assert run_states(run) == []
    assert list(read(run / "metrics.jsonl")) == [1]


def test_skipping_changes_nothing_any_more_and_ends_too(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {
        "joint__on_nonfinite": "skip",
        "joint__steps": 20,
        "joint__evaluate_every": 4,
        "joint__refresh__canary_every": 3,
    }
    with (
        pytest.raises(NotFiniteError, match=r"at step 11 \(10 updates in a row were skipped\)"),
        caplog.at_level(logging.WARNING),
    ):
        train(world, tmp_path, **values)
    assert "the loss is nan at step 2: the update is skipped on every rank" in caplog.text
    (run,) = tmp_path.glob("run-*")
    assert [step for step, values in read(run / "metrics.jsonl").items() if values["skipped"]] == list(range(2, 11))
    assert run_states(run) == []


def test_the_last_good_run_state_is_kept_and_taken_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is sound but for one step, whose update makes the weights too large."""
    from training.loop import loop

    sound = loop.rate_factor
    monkeypatch.setattr(
        loop, "rate_factor", lambda step, steps, settings: sound(step, steps, settings) * (1e33 if step == 3 else 1)
    )
    values = {"joint__optimiser__learning_rate": 1e-3}
    with pytest.raises(NotFiniteError, match="the loss is nan at step 5"):
        train(world, tmp_path, **values)
    (run,) = tmp_path.glob("run-*")
    assert [state.parent.name for state in run_states(run)] == ["step-00000003"]
    monkeypatch.setattr(loop, "rate_factor", sound)
    assert train(world, tmp_path, **values) == 0
    assert json.loads((tmp_path / "report.json").read_text())["skipped_steps"] == []


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_the_last_update_is_looked_at_too(
    world: World, tmp_path: Path, on_nonfinite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later step would reveal that it made the weights infinite."""
    sound = explode(monkeypatch, update=6)
    values = {"joint__optimiser__learning_rate": 1e-3, "joint__on_nonfinite": on_nonfinite}
    with pytest.raises(NotFiniteError, match=r"weights are not finite after step 6; lower the learning rate"):
        train(world, tmp_path, **values)
    (run,) = tmp_path.glob("run-*")
    assert [state.parent.name for state in run_states(run)] == ["step-00000004", "step-00000005"]
    assert not (tmp_path / "checkpoint").exists()
    monkeypatch.setattr(LocalEngine, "update", sound)
    assert train(world, tmp_path, **values) == 0
    assert (tmp_path / "checkpoint").is_dir()


@pytest.mark.parametrize(("every", "step"), [(1, 4), (9, 6)])
def test_no_state_and_no_checkpoint_holds_broken_weights(
    world: World, tmp_path: Path, every: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when a state is due, or, with the steps after it skipped, at the end."""
    explode(monkeypatch, update=4)
    values = {"joint__optimiser__learning_rate": 1e-3, "joint__on_nonfinite": "skip", "joint__checkpoint_every": every}
    with pytest.raises(NotFiniteError, match=rf"weights are not finite after step {step};"):
        train(world, tmp_path, **values)
    (run,) = tmp_path.glob("run-*")
    assert [state.parent.name for state in run_states(run)] == (
        ["step-00000002", "step-00000003"] if every == 1 else []
    )
    assert not (tmp_path / "checkpoint").exists()


def test_weights_that_no_loss_depends_on_any_more_are_looked_at_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compressor is frozen after the update that breaks it, and memory is stored."""
    sound, made = LocalEngine.update, itertools.count(1)

    def updated(self: LocalEngine, factors: Sequence[float]) -> float:
        norm = sound(self, factors)
        if next(made) == 3:
            self._optimiser.param_groups[-1]["params"][0].data.mul_(float("inf"))
        return norm

    monkeypatch.setattr(LocalEngine, "update", updated)
    values = {
        "joint__train_compressor": "true",
        "joint__train_generator": "false",
        "joint__compressor_steps": 3,
        "joint__checkpoint_every": 4,
    }
    with pytest.raises(NotFiniteError, match="weights are not finite after step 4;"):
        train(world, tmp_path, joint__optimiser__learning_rate=1e-3, **values)
    (run,) = tmp_path.glob("run-*")
    assert run_states(run) == []
    # The step in between saw nothing.
    assert list(read(run / "metrics.jsonl")) == [1, 2, 3]


@pytest.mark.parametrize("rate", ["inf", "nan", "-inf"])
def test_a_rate_that_is_no_finite_number_is_refused(world: World, tmp_path: Path, rate: str) -> None:
    with pytest.raises(InputError, match=r"joint\.optimiser\.learning_rate is .*: Input should be"):
        train(world, tmp_path, joint__optimiser__learning_rate=rate)
