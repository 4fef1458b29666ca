"""Pays at set-up for what the first run would pay: byte-code of large libraries, DeepSpeed's start.

python -m training.warm_up
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn

from clara.config.flags import plain_parser
from clara.config.stages import Optimiser
from clara.errors import command_line
from clara.model.steps import Output
from training.loop.zero_engine import DeepSpeedEngine


class Square(nn.Module):
    """The least that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, batch: float, normaliser: float, num_rows: float) -> Output:
        """A loss to make gradients of."""
        return Output((self.weight * batch).square().sum() / (normaliser * num_rows))


def one_step() -> float:
    """One update of one rank under ZeRO-2; returns the gradient's norm, which is 4."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        module = Square()
        settings = Optimiser(learning_rate=1e-3, gradient_clip=1.0)
        engine = DeepSpeedEngine(
            module,
            [(1e-3, list(module.parameters()))],
            settings,
            zero_stage=2,
            micro_batch=1,
            num_accumulated=1,
            device="cpu",
        )
        engine.backward(engine.forward(1.0, 1.0, 1.0).loss, last=True)
        norm = engine.update([1.0])
        dist.destroy_process_group()
    return norm


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("training.warm_up", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    options = parser.parse_args(argv)
    if options.dry_run:
        print("would import ray.train and mlflow, and make one step of DeepSpeed on the CPU")
        return 0
    import mlflow  # noqa: F401
    import ray.train.torch  # noqa: F401

    print(f"DeepSpeed on the CPU: one step, gradient norm {one_step():.3f}")
    return 0


if __name__ == "__main__":
    command_line(main)
