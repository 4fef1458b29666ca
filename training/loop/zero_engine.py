"""DeepSpeed's ZeRO as an engine of the loop.

Adapters stay in float32 whatever the type of the frozen LM, as in the local engine: a bfloat16 engine would round
memory tokens, which are part of MEMORY's fingerprint, and save nothing, since what trains is small. So ZeRO's master
weights are the weights.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from clara.config.stages import Optimiser
from clara.config.tree import Config
from clara.model.steps import Output
from training.loop.engine import MOMENTS, Engine, check_state, parameter_groups, storage_bytes, trained
from training.loop.loop import Stage

_BUCKET_NUMBERS = 20_000_000
KEEP_WHOLE_BELOW = 100_000


def settings_of(
    optimiser: Optimiser,
    *,
    zero_stage: int,
    micro_batch: int,
    num_accumulated: int,
    keep_whole_below: int = KEEP_WHOLE_BELOW,
) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        optimiser: for clipping; the rate is set by the loop.
        zero_stage: 1, 2 or 3.
        micro_batch: questions in a forward pass of a rank (DeepSpeed only reports it).
        num_accumulated: backward passes of a rank in a step.
        keep_whole_below: ZeRO-3 does not partition parameters of fewer numbers.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": num_accumulated,
        "gradient_clipping": optimiser.gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            # The defaults allocate gigabytes ahead; what trains here is a few million numbers.
            "stage3_param_persistence_threshold": keep_whole_below,
            "reduce_bucket_size": _BUCKET_NUMBERS,
            "allgather_bucket_size": _BUCKET_NUMBERS,
            "overlap_comm": False,
        },
        "steps_per_print": 2**31,
    }


def import_deepspeed(device: str) -> Any:
    """The library, set for a kind of device, before it looks for one itself.

    Its CPU backend would compile an operator at the first start (a minute, a C++ compiler, ninja) that serves inference
    only; it is declared incompatible here, which DeepSpeed provides for.
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
        keep_whole_below: int = KEEP_WHOLE_BELOW,
    ) -> None:
        """Partition the optimiser, gradients or parameters over the ranks.

        Args:
            module: the step.
            groups: what trains, with rates.
            optimiser: AdamW's settings.
            zero_stage: 1: optimiser state over the ranks, 2: gradients too, 3: parameters too.
            micro_batch: questions in a forward pass.
            num_accumulated: backward passes of a step.
            device: `cpu` or `cuda`.
            keep_whole_below: ZeRO-3 keeps parameters of fewer numbers whole on every rank.
        """
        deepspeed = import_deepspeed(device)
        self._deepspeed = deepspeed
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")
        self._rates = [rate for rate, _ in groups]
        self._zero_stage, self._num_accumulated = zero_stage, num_accumulated
        adamw = torch.optim.AdamW(
            parameter_groups(groups, optimiser), betas=optimiser.betas, weight_decay=optimiser.weight_decay
        )
        config = settings_of(
            optimiser,
            zero_stage=zero_stage,
            micro_batch=micro_batch,
            num_accumulated=num_accumulated,
            keep_whole_below=keep_whole_below,
        )
        self._engine, self._optimiser, _, _ = deepspeed.initialize(model=module, optimizer=adamw, config=config)
        self.module = module
        self._trained = trained(module, [p for _, params in groups for p in params])
        self._gradient_bytes = 0

    def forward(self, batch: Any, normaliser: float, num_rows: float) -> Output:
        """See the base class."""
        output: Output = self._engine(batch, normaliser, num_rows)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """See the base class.

        DeepSpeed averages over ranks and accumulation, but the loss is a share of one sum: the average is
        undone here.
        """
        self._engine.backward(loss * (self.world * self._num_accumulated))
        if not last:
            self._engine.step()

    def update(self, factors: Sequence[float]) -> float:
        """See the base class. ZeRO drops an update whose norm over all ranks is not finite, and says infinity."""
        self._gradient_bytes = max(self._gradient_bytes, self._held_gradients())
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

    def gather_state(self) -> dict[str, torch.Tensor]:
        """See the base class. One parameter after another is made whole, so that no rank needs room for all of them."""
        fragments = self._deepspeed.utils
        updates = self._have_moments()
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self._trained.items():
            parts = {"weight": fragments.safe_get_full_fp32_param(parameter)}
            parts |= {part: fragments.safe_get_full_optimizer_state(parameter, part) for part in MOMENTS}
            if self.rank == 0:
                found |= {
                    f"{part}.{name}": value.detach().to("cpu", copy=True).contiguous() for part, value in parts.items()
                }
                found[f"step.{name}"] = updates.clone()
        return found

    def take_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See the base class.

        Parameters of a group share their number of updates: those without a gradient so far count as zeros.
        """
        check_state(self._trained, tensors)
        counts = [float(value) for name, value in tensors.items() if name.startswith("step.")]
        self._have_moments(max(counts, default=0.0))
        for name, parameter in self._trained.items():
            self._put(parameter, tensors[f"weight.{name}"], "")
            for part in MOMENTS:
                if f"{part}.{name}" in tensors:
                    self._put(parameter, tensors[f"{part}.{name}"], part)

    def _have_moments(self, updates: float | None = None) -> torch.Tensor:
        """Create AdamW's state, which it makes at its first update only, and set and return the number of updates."""
        inner = self._optimiser.optimizer
        parts = (
            self._optimiser.fp32_partitioned_groups_flat
            if self._zero_stage == 3
            else self._optimiser.single_partition_of_fp32_groups
        )
        for flat in parts:
            state = inner.state[flat]
            if not state:
                state |= {"step": torch.tensor(0.0), **{part: torch.zeros_like(flat) for part in MOMENTS}}
            if updates is not None:
                state["step"].fill_(updates)
        if self._zero_stage < 3:
            # It links parameters to their moments at the first group's first update, when later groups have none yet.
            self._optimiser._hp_optimizer_states_linked = False
            self._optimiser._lazy_init_hp_params_optimizer_state()
        found: torch.Tensor = inner.state[parts[0]]["step"]
        return found.detach().cpu()

    def _put(self, parameter: nn.Parameter, value: torch.Tensor, part: str) -> None:
        """Write this rank's share of a whole tensor: into the weights (`part` empty) or one of AdamW's moments."""
        fragments = self._deepspeed.utils
        value = value.to(self._device, torch.float32)
        if self._zero_stage < 3:
            if part:
                fragments.safe_set_full_optimizer_state(parameter, value, part)
                return
            fragments.safe_set_full_fp32_param(parameter, value)
            with torch.no_grad():
                parameter.copy_(value)
            return
        held: Any = parameter
        size = held.ds_tensor.numel()
        # The last rank's share is filled up, and DeepSpeed's own way of setting a whole tensor does not do that.
        own = nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))[
            size * self.rank : size * (self.rank + 1)
        ]
        if part:
            fragments.safe_set_local_optimizer_state(parameter, own, part)
            return
        fragments.safe_set_local_fp32_param(parameter, own)
        with torch.no_grad():
            held.ds_tensor.copy_(own)
            if parameter.shape == value.shape:  # small ones stay whole on every rank
                parameter.copy_(value)

    def _held_gradients(self) -> int:
        """Bytes of the gradients that wait for the update, each storage once."""
        zero = self._optimiser
        held = [p.grad for p in self._trained.values() if p.grad is not None]
        held += [zero.grad_partitions_flat_buffer] if self._zero_stage == 3 else []
        held += [grad for group in zero.averaged_gradients.values() for grad in group or ()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.numel()}.values())

    def held_bytes(self) -> dict[str, int]:
        """See the base class."""
        zero, whole = self._optimiser, list(self.module.parameters())
        weights = sum(storage_bytes(p) for p in whole)
        if self._zero_stage == 3:
            weights += sum(storage_bytes(cast(Any, p).ds_tensor) for p in whole)
            master = zero.fp32_partitioned_groups_flat
        else:
            master = zero.single_partition_of_fp32_groups
        state = [value for parts in zero.optimizer.state.values() for value in parts.values() if torch.is_tensor(value)]
        return {
            "weights": weights,
            "gradients": self._gradient_bytes,
            "optimiser": sum(storage_bytes(t) for t in [*master, *state]),
        }

    def barrier(self) -> None:
        """See the base class."""
        dist.barrier()


def engine_for(config: Config, stage: Stage, *, num_ranks: int, device: str) -> DeepSpeedEngine:
    """The engine of a joint run's ranks.

    Args:
        config: the root.
        stage: what trains.
        num_ranks: of the group.
        device: `cpu` or `cuda`.
    """
    joint, launch = config.joint, config.launch
    return DeepSpeedEngine(
        stage.module,
        stage.groups(),
        stage.optimiser,
        zero_stage=launch.zero_stage,
        micro_batch=joint.micro_batch,
        num_accumulated=max(1, joint.questions_per_step // (num_ranks * joint.micro_batch)),
        device=device,
        keep_whole_below=launch.zero3_keep_whole_below,
    )
