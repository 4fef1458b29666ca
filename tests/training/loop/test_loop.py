"""The loop: resuming equals never having stopped; the sampler, schedule, shards, and the one-process engine."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clara.config.stages import Optimiser, Pretrain
from clara.config.tree import Config
from clara.data.examples import Example
from clara.errors import InputError
from clara.model.model import ClaraModel
from clara.model.steps import Output
from tests.helpers import tiny
from tests.helpers.fuzz import examples
from training.loop.engine import LocalEngine
from training.loop.loop import Figures, rate_factor, run, sample
from training.loop.run_state import RUN_STATE
from training.loop.shares import shard
from training.stages.memory_stages import PretrainStage

STEPS = 6
EXAMPLES = [
    Example(
        str(n),
        row["id"],
        row["title"],
        row["text"],
        "qa",
        (f"Who is the mayor of {row['title']}?",),
        (row["title"][:3],),
    )
    if n % 2
    else Example(str(n), row["id"], row["title"], row["text"], "autoencode")
    for n, row in enumerate(tiny.documents()[:10])
]


class CrashError(Exception):
    """What stops a run in these tests."""


class CrashingStage(PretrainStage):
    """A stage that dies ahead of a step."""

    crash_at = -1

    def before_step(self, step: int, announced: float) -> None:
        if step == self.crash_at:
            raise CrashError


def config(**pretrain: object) -> Config:
    optimiser = Optimiser(learning_rate=0.01, schedule="cosine", warmup_ratio=0.3, weight_decay=0.05)
    return Config(pretrain=Pretrain(steps=STEPS, documents_per_step=4, optimiser=optimiser, **pretrain), seed=5)


def start(
    backbone: Path, *, crash_at: int = -1, micro_batch: int = 2, double: bool = False
) -> tuple[ClaraModel, CrashingStage, LocalEngine]:
    """Everything is rebuilt, as in a new process; with dropout, so that the random state counts."""
    model = tiny.build_model(backbone, lora={"rank": 4, "alpha": 8.0, "dropout": 0.0 if double else 0.2})
    if double:
        model.double()
    stage = CrashingStage(model, EXAMPLES, config(), micro_batch)
    stage.crash_at = crash_at
    return model, stage, LocalEngine(stage.module, stage.groups(), stage.optimiser)


def train(
    backbone: Path, directory: Path, *, crash_at: int = -1, **options: object
) -> tuple[ClaraModel, dict[int, dict[str, float]]]:
    model, stage, engine = start(backbone, crash_at=crash_at, **options)
    figures: dict[int, dict[str, float]] = {}
    run(stage, engine, directory, seed=5, checkpoint_every=2, log=lambda step, values: figures.update({step: values}))
    return model, figures


@pytest.fixture(scope="module")
def undisturbed(
    tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ClaraModel, dict[int, dict[str, float]]]:
    return train(tiny_backbone, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("crash_at", range(STEPS))
def test_resuming_equals_never_having_stopped(tiny_backbone: Path, tmp_path: Path, undisturbed, crash_at: int):
    with pytest.raises(CrashError):
        train(tiny_backbone, tmp_path, crash_at=crash_at)
    torch.manual_seed(99)  # whatever the new process drew before
    resumed, figures = train(tiny_backbone, tmp_path)
    whole, wanted = undisturbed
    assert min(figures) == crash_at // 2 * 2 + 1
    before, after = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for step, values in figures.items():
        for name in ("loss", "answer_nats", "mse", "gradient_norm", "learning_rate_factor"):
            assert values[name] == wanted[step][name], (step, name)


def test_training_changed_the_weights(tiny_backbone: Path, undisturbed):
    fresh = tiny.build_model(tiny_backbone, lora={"rank": 4, "alpha": 8.0, "dropout": 0.2}).state_dict()
    changed = {name for name, tensor in undisturbed[0].state_dict().items() if not torch.equal(tensor, fresh[name])}
    assert changed == {
        n for n in fresh if ".adapters.compressor." in n or ".adapters.generator." in n or n.startswith("slots.")
    } - {"slots.gate"}


def test_a_half_written_run_state_is_not_taken_up(tiny_backbone: Path, tmp_path: Path, undisturbed):
    with pytest.raises(CrashError):
        train(tiny_backbone, tmp_path, crash_at=5)
    newest = tmp_path / RUN_STATE / "step-00000004"
    (newest / "state.json").unlink()
    (newest / "state.safetensors").write_bytes(b"half")
    resumed, figures = train(tiny_backbone, tmp_path)
    assert min(figures) == 3
    assert all(
        torch.equal(a, b)
        for a, b in zip(resumed.state_dict().values(), undisturbed[0].state_dict().values(), strict=True)
    )


def test_only_the_newest_run_states_are_kept(tiny_backbone: Path, tmp_path: Path):
    _, stage, engine = start(tiny_backbone)
    run(stage, engine, tmp_path, seed=5, checkpoint_every=1)
    assert sorted(p.name for p in (tmp_path / RUN_STATE).iterdir()) == ["step-00000004", "step-00000005"]


def test_micro_batches_change_nothing_but_rounding(tiny_backbone: Path, tmp_path: Path):
    whole, figures = train(tiny_backbone, tmp_path / "whole", micro_batch=4, double=True)
    parts, figures_of_parts = train(tiny_backbone, tmp_path / "parts", micro_batch=1, double=True)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)
    for step in figures:
        for name in ("loss", "answer_nats", "mse", "gradient_norm"):
            assert figures_of_parts[step][name] == pytest.approx(figures[step][name], rel=1e-6), (step, name)


def test_a_loss_that_is_not_finite_stops_the_run_ahead_of_the_update(tiny_backbone: Path, tmp_path: Path):
    model, stage, engine = start(tiny_backbone)
    with torch.no_grad():
        model.slots.memory_tokens[0, 0] = torch.nan
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(InputError, match=r"pretrain: the loss is nan at step 1; lower the learning rate"):
        run(stage, engine, tmp_path, seed=5, checkpoint_every=1)
    assert all(torch.equal(p.nan_to_num(7), before[name].nan_to_num(7)) for name, p in model.named_parameters())


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path):
    parameter = torch.nn.Parameter(torch.ones(3))
    engine = LocalEngine(torch.nn.Linear(1, 1), [(0.1, [parameter])], Optimiser())
    engine.backward((parameter * torch.tensor([1.0, torch.inf, 1.0])).sum(), last=True)
    assert not math.isfinite(engine.update([1.0]))
    assert torch.equal(parameter, torch.ones(3))
    assert parameter.grad is None


class BreakingStage(PretrainStage):
    """A stage whose loss, or whose gradient alone, is not finite at certain steps."""

    def __init__(self, *args: object, bad: Collection[int], gradient_only: bool) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.bad, self.gradient_only = bad, gradient_only
        self.module.register_forward_hook(self._break)
        self.step = -1

    def before_step(self, step: int, announced: float) -> None:
        self.step = step

    def _break(self, module: torch.nn.Module, inputs: object, output: Output) -> Output:
        if self.step not in self.bad:
            return output
        # √0 is finite and its slope is not; a constant that is not a number leaves the gradient finite.
        broken = (output.loss * 0.0).sqrt() if self.gradient_only else output.loss + torch.nan
        return dataclasses.replace(output, loss=broken)


def breaking(
    backbone: Path, bad: Collection[int], *, gradient_only: bool
) -> tuple[ClaraModel, BreakingStage, LocalEngine]:
    model = tiny.build_model(backbone)
    stage = BreakingStage(model, EXAMPLES, config(), 2, bad=bad, gradient_only=gradient_only)
    return model, stage, LocalEngine(stage.module, stage.groups(), stage.optimiser)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_that_is_not_finite_stops_the_run_or_is_skipped(
    tiny_backbone: Path, tmp_path: Path, gradient_only: bool, caplog: pytest.LogCaptureFixture
):
    what = "the gradient's norm is nan, though the loss is finite" if gradient_only else "the loss is nan"
    model, stage, engine = breaking(tiny_backbone, {0}, gradient_only=gradient_only)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(InputError, match=rf"pretrain: {what},? at step 1; .*no weight was changed"):
        run(stage, engine, tmp_path / "stop", seed=5, checkpoint_every=9)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())

    model, stage, engine = breaking(tiny_backbone, {0, 3}, gradient_only=gradient_only)
    figures: dict[int, dict[str, float]] = {}
    states: list[dict[str, torch.Tensor]] = []

    def log(step: int, values: dict[str, float]) -> None:
        figures[step] = values
        states.append({name: p.clone() for name, p in model.state_dict().items()})

    run(stage, engine, tmp_path / "skip", seed=5, checkpoint_every=9, log=log, on_nonfinite="skip")
    assert [step for step, values in figures.items() if values["skipped"]] == [1, 4]
    assert f"{what}" in caplog.text
    assert "at step 4: the update is skipped on every rank" in caplog.text
    changed = [any(not torch.equal(new[n], old[n]) for n in new) for old, new in itertools.pairwise([before, *states])]
    assert changed == [False, True, True, False, True, True]
    assert all(torch.isfinite(p).all() for p in model.state_dict().values())


def test_nothing_but_broken_steps_stops_the_run(tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.loop.loop._MOST_SKIPPED", 3)
    _, stage, engine = breaking(tiny_backbone, {2, 3, 4}, gradient_only=False)
    with pytest.raises(InputError, match=r"at step 5 \(3 updates in a row were skipped\)"):
        run(stage, engine, tmp_path, seed=5, checkpoint_every=9, on_nonfinite="skip")


# --- sampler and shards ----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**20), size=st.integers(1, 30), count=st.integers(1, 12), steps=st.integers(1, 12))
@hypothesis_settings(max_examples=examples(60), deadline=None)
def test_the_sampler_runs_through_whole_permutations(seed: int, size: int, count: int, steps: int):
    rows = [row for step in range(steps) for row in sample(seed, step, count, size)]
    assert len(rows) == steps * count
    for epoch in range(len(rows) // size):
        assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert max(Counter(rows).values()) - min(Counter({n: 0 for n in range(size)} | Counter(rows)).values()) <= 1


@given(seed=st.integers(0, 2**20), step=st.integers(0, 50), count=st.integers(1, 8), size=st.integers(1, 40))
@hypothesis_settings(max_examples=examples(40), deadline=None)
def test_a_step_is_a_function_of_its_number_and_leaves_the_random_state(seed: int, step: int, count: int, size: int):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample(seed, step, count, size)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample(seed, step, count, size) == first
    whole_epoch_at_once = [row for s in range(step + 1) for row in sample(seed, s, count, size)]
    assert whole_epoch_at_once[step * count :] == first


def test_epochs_and_seeds_are_shuffled_differently():
    epochs = [tuple(sample(3, step, 20, 20)) for step in range(4)]
    assert len(set(epochs)) == 4
    assert sample(3, 0, 20, 20) != sample(4, 0, 20, 20)


@given(world=st.integers(1, 4), micro=st.integers(1, 3), times=st.integers(1, 3))
def test_shards_part_the_rows_evenly(world: int, micro: int, times: int):
    rows = list(range(100, 100 + world * micro * times))
    parts = [shard(rows, rank, world, micro) for rank in range(world)]
    assert {len(p) for p in parts} == {times}
    assert all(len(batch) == micro for p in parts for batch in p)
    assert sorted(row for p in parts for batch in p for row in batch) == rows


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(InputError, match=r"10 rows a step are not a multiple of ranks x micro_batch = 2 x 3"):
        shard(list(range(10)), 0, 2, 3)


# --- schedule --------------------------------------------------------------------------------------------------------


def test_V11_schedule_without_the_wasted_first_update():
    """The reference's rates for three updates, one of warm-up: 0, 1e-4, 5.5e-5; ours begin at the full rate."""
    settings = Optimiser(learning_rate=1e-4, schedule="cosine", warmup_ratio=1 / 3, min_ratio=0.1)
    rates = [1e-4 * rate_factor(step, 3, settings) for step in range(4)]
    assert rates == pytest.approx([1e-4, 1e-4, 5.5e-5, 1e-5])


def test_V11_schedule_of_the_reference():
    settings = Optimiser(
        learning_rate=1e-4, schedule="cosine", warmup_ratio=1 / 3, min_ratio=0.1, warmup_from_zero=True
    )
    assert [1e-4 * rate_factor(step, 3, settings) for step in range(4)] == pytest.approx([0, 1e-4, 5.5e-5, 1e-5])
    assert not Optimiser().warmup_from_zero


@given(
    steps=st.integers(1, 200),
    warmup=st.floats(0, 0.99),
    minimum=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine"]),
)
def test_the_rate_rises_then_falls_and_is_never_zero_in_warm_up(
    steps: int, warmup: float, minimum: float, schedule: str
):
    settings = Optimiser(schedule=schedule, warmup_ratio=warmup, min_ratio=minimum)
    factors = [rate_factor(step, steps, settings) for step in range(steps)]
    rising = math.ceil(warmup * steps)
    assert all(0 < f <= 1 for f in factors[:rising])
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert all(minimum - 1e-12 <= f <= 1 for f in factors[rising:])
    if schedule == "constant":
        assert set(factors[rising:]) <= {1.0}


# --- engine and figures ----------------------------------------------------------------------------------------------


def test_the_first_update_moves_each_group_by_its_own_rate():
    slow, fast, still = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [(0.01, [slow]), (0.1, [fast]), (0.1, [still])]
    engine = LocalEngine(torch.nn.Linear(1, 1), groups, Optimiser(gradient_clip=0, weight_decay=0.0))
    engine.backward((3 * slow + 4 * fast + 5 * still).sum(), last=True)
    norm = engine.update([0.5, 0.5, 0.0])
    assert norm == pytest.approx(math.sqrt(2 * (9 + 16 + 25)))
    assert torch.equal(still, torch.ones(2))
    torch.testing.assert_close(slow.detach(), torch.full((2,), 1 - 0.005))
    torch.testing.assert_close(fast.detach(), torch.full((2,), 1 - 0.05))
    assert slow.grad is None


def test_gradients_are_clipped_together():
    """Adam's first update has no scale, so the clipped gradient is read from its first moment: (1 − β₁) g."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    engine = LocalEngine(torch.nn.Linear(1, 1), [(0.1, [parameter])], Optimiser(gradient_clip=1.0))
    engine.backward((parameter * torch.tensor([3.0, 4.0])).sum(), last=True)
    assert engine.update([1.0]) == pytest.approx(5.0)
    moment = engine._optimiser.state[parameter]["exp_avg"]
    torch.testing.assert_close(moment, 0.1 * torch.tensor([0.6, 0.8]), atol=1e-6, rtol=1e-6)


def test_figures_are_means_by_their_counts():
    figures = Figures()
    figures.add({"a": (6.0, 2.0), "b": (1.0, 1.0), "none": (0.0, 0.0)})
    figures.add({"a": (3.0, 1.0)})
    engine = LocalEngine(torch.nn.Linear(1, 1), [(0.1, [torch.nn.Parameter(torch.zeros(1))])], Optimiser())
    assert figures.means(engine) == {"a": 3.0, "b": 1.0}
