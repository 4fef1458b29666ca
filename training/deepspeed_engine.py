"""DeepSpeed's ZeRO as an engine of the loop.

Adapters stay in float32 whatever the type of the frozen LM, as in the local engine: a bfloat16 engine would round memory tokens, which are part of
MEMORY's fingerprint, and save nothing, since what trains is small. So ZeRO's master weights are the weights.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from clara.config import Optimiser
from clara.errors import InputError
from clara.steps import Output
from training.engine import Engine, parameter_groups

_FILES = "deepspeed"
_BUCKET_NUMBERS = 20_000_000


def settings_of(optimiser: Optimiser, *, zero_stage: int, micro_batch: int, num_accumulated: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        optimiser: for clipping; the rate is set by the loop.
        zero_stage: 1, 2 or 3.
        micro_batch: questions in a forward pass of a rank (DeepSpeed only reports it).
        num_accumulated: backward passes of a rank in a step.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": num_accumulated,
        "gradient_clipping": optimiser.gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            # The defaults allocate gigabytes ahead; what trains here is a few million numbers.
            "reduce_bucket_size": _BUCKET_NUMBERS,
            "allgather_bucket_size": _BUCKET_NUMBERS,
            "overlap_comm": False,
        },
        "steps_per_print": 2**31,
    }


def import_deepspeed(device: str) -> Any:
    """The library, set for a kind of device, before it looks for one itself.

    Its CPU backend would compile an operator at the first start (a minute, a C++ compiler, ninja) that serves inference only; it is declared
    incompatible here, which DeepSpeed provides for.
    """
    os.environ["DS_ACCELERATOR"] = "cuda" if device == "cuda" else "cpu"
    import deepspeed

    if device != "cuda":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class DeepSpeedEngine(Engine):
    """One rank of a ZeRO group; torch.distributed is initialised by then."""

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[tuple[float, list[nn.Parameter]]],
        optimiser: Optimiser,
        *,
        zero_stage: int,
        micro_batch: int,
        num_accumulated: int,
        device: str,
    ) -> None:
        """Partition what trains.

        Args:
            module: the step.
            groups: what trains, with rates.
            optimiser: AdamW's settings.
            zero_stage: 1: optimiser state over the ranks, 2: gradients too, 3: parameters too.
            micro_batch: questions in a forward pass.
            num_accumulated: backward passes of a step.
            device: `cpu` or `cuda`.
        """
        deepspeed = import_deepspeed(device)
        self._deepspeed = deepspeed
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
        self._rates = [rate for rate, _ in groups]
        self._zero_stage, self._num_accumulated = zero_stage, num_accumulated
        adamw = torch.optim.AdamW(parameter_groups(groups, optimiser), betas=optimiser.betas, weight_decay=optimiser.weight_decay)
        config = settings_of(optimiser, zero_stage=zero_stage, micro_batch=micro_batch, num_accumulated=num_accumulated)
        self._engine, self._optimiser, _, _ = deepspeed.initialize(model=module, optimizer=adamw, config=config)
        self.module = module

    def forward(self, batch: Any, normaliser: float, num_rows: float) -> Output:
        """See the base class."""
        output: Output = self._engine(batch, normaliser, num_rows)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """See the base class. DeepSpeed averages over ranks and accumulation, where the loss is a share of one sum: undone here."""
        self._engine.backward(loss * (self.world * self._num_accumulated))
        if not last:
            self._engine.step()

    def update(self, factors: Sequence[float]) -> float:
        """See the base class. ZeRO drops an update whose norm over all ranks is not finite, and says infinity."""
        for group, rate, factor in zip(self._optimiser.param_groups, self._rates, factors, strict=True):
            group["lr"] = rate * factor
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def sum(self, values: Sequence[float]) -> list[float]:
        """See the base class."""
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        own = rows.to(self._device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        return torch.stack(parts).to(rows.device)

    @contextmanager
    def whole(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """See the base class."""
        if self._zero_stage < 3:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None):
            yield

    def save(self, directory: Path) -> None:
        """See the base class. The files are DeepSpeed's, partly pickle: `load` opens them from the run's own directory alone."""
        self._engine.save_checkpoint(str(directory), tag=_FILES, save_latest=False, exclude_frozen_parameters=True)

    def load(self, directory: Path) -> None:
        """See the base class.

        Raises:
            InputError: the files are not there or for another number of ranks.
        """
        path, _ = self._engine.load_checkpoint(str(directory), tag=_FILES, load_module_strict=False)
        if path is None:
            raise InputError(
                f"{directory}: no run state of DeepSpeed for {self.world} ranks; remove the folder to go back to the one before"
            )

    def barrier(self) -> None:
        """See the base class."""
        dist.barrier()
