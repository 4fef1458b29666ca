"""A non-finite loss or query on one of two ranks: with ZeRO both ranks skip the update, or both stop."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ranks

PROGRAM = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from clara.config.stages import Optimiser
from clara.errors import InputError
from clara.model.steps import Output
from training.loop.zero_engine import DeepSpeedEngine, import_deepspeed
from training.loop.loop import Stage, run


class Batch:
    weight = 1.0


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.break_now = False

    def forward(self, batch, normaliser, num_rows):
        loss = self.layer(torch.ones(1, 4)).square().sum() / normaliser
        return Output(loss + torch.nan if self.break_now else loss)


class Toy(Stage):
    name, steps, optimiser = "toy", 3, Optimiser(learning_rate=0.1)

    def __init__(self, rank, what):
        torch.manual_seed(0)
        self.module, self.rank, self.what, self.seen, self.step = Step(), rank, what, [], 0

    def groups(self):
        return [(0.1, list(self.module.parameters()))]

    def micro_batches(self, step, rank, world):
        self.step = step
        return [Batch(), Batch()]

    def rows(self, step):
        return 4

    def broken(self):
        return self.what == "drawn" and self.step == 1 and self.rank == 1

    def before_step(self, step, announced):
        self.module.break_now = self.what == "loss" and step == 1 and self.rank == 1

    def breaking(self, update):
        # The last update makes the weights infinite, which no later step reports.
        def updated(factors):
            norm = update(factors)
            if self.what == "weights" and self.step == self.steps - 1:
                parameters = list(self.module.parameters())
                whole = hasattr(parameters[0], "ds_id")
                with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=whole):
                    for parameter in parameters:
                        parameter.data.mul_(float("inf"))
            return norm
        return updated

    def after_step(self, step, engine):
        with engine.whole(list(self.module.parameters())):
            self.seen.append(self.module.layer.weight.detach().flatten().tolist())
        return {}


deepspeed = import_deepspeed("cpu")
dist.init_process_group("gloo")
rank = dist.get_rank()
# One start serves every case.
for zero_stage, on_nonfinite, what in json.loads(sys.argv[2]):
    output = Path(sys.argv[1]) / f"{zero_stage}-{on_nonfinite}-{what}"
    output.mkdir(exist_ok=True)
    stage = Toy(rank, what)
    engine = DeepSpeedEngine(
        stage.module, stage.groups(), stage.optimiser, zero_stage=zero_stage, micro_batch=1, num_accumulated=2,
        device="cpu", keep_whole_below=0,
    )
    engine.update = stage.breaking(engine.update)
    figures, error = {}, ""
    try:
        run(stage, engine, output, seed=0, checkpoint_every=9,
            log=lambda step, values: figures.update({step: values["skipped"]}), on_nonfinite=on_nonfinite)
    except InputError as stopped:
        error = str(stopped)
    (output / f"rank{rank}.json").write_text(json.dumps({"seen": stage.seen, "skipped": figures, "error": error}))
    dist.barrier()
# A rank that ends with its group open can be aborted by a thread of gloo that still runs.
dist.destroy_process_group()
"""
ZERO_STAGES, WHAT = (2, 3), ("loss", "drawn")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `STAGE-POLICY-WHAT`, with what each rank saw."""
    folder = tmp_path_factory.mktemp("nonfinite")
    cases = [
        *itertools.product(ZERO_STAGES, ("skip", "stop"), WHAT),
        *itertools.product(ZERO_STAGES, ("stop",), ("weights",)),
    ]
    ranks.finished(ranks.start(2, [str(folder), json.dumps(cases)], PROGRAM, folder / "said"), 600)
    return folder


def outcome(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_both_ranks_skip_or_stop_together(outcomes: Path, zero_stage: int, what: str) -> None:
    first, second = outcome(outcomes / f"{zero_stage}-skip-{what}")
    assert first["error"] == second["error"] == ""
    assert first["seen"] == second["seen"]
    one, two, three = (torch.tensor(weights) for weights in first["seen"])
    assert torch.equal(one, two)
    assert not torch.equal(two, three)
    assert torch.isfinite(three).all()
    assert first["skipped"] == {"1": 0.0, "2": 1.0, "3": 0.0}

    first, second = outcome(outcomes / f"{zero_stage}-stop-{what}")
    assert first["seen"] == second["seen"] == [one.tolist()]
    for result in (first, second):
        assert "toy: the loss is nan at step 2; lower the learning rate" in result["error"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_weights_of_the_last_update_are_looked_at_on_both_ranks(outcomes: Path, zero_stage: int) -> None:
    for result in outcome(outcomes / f"{zero_stage}-stop-weights"):
        assert len(result["seen"]) == 2
        assert "toy: weights are not finite after step 3; lower the learning rate" in result["error"]
