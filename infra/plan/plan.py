"""A plan as plain values, for JSON and for the text."""

from dataclasses import asdict
from typing import Any

from infra.plan import advice, gpu_memory
from infra.plan.estimate import Estimate
from infra.plan.machines import Figure

_HOUR = 3600.0


def plan_of(estimate: Estimate, *, refresh_share: float, disk_bytes: float) -> dict[str, Any]:
    """Everything that the command says.

    Args:
        estimate: the run.
        refresh_share: of all device time that refreshes may take.
        disk_bytes: for MEMORY.
    """
    config, request, rows = estimate.config, estimate.request, estimate.rows
    rhythm = advice.rhythm(estimate, refresh_share)
    refreshes = {"full": rhythm.most, "none": 0}.get(rhythm.policy.name, 1)  # the others end with a whole one
    seconds = {
        "compression": estimate.compression_seconds(request.gpus),
        "index": estimate.index_seconds(),
        "joint": estimate.joint_seconds(),
        "refresh": estimate.refresh_seconds(),
        "joint_step": estimate.step_seconds(),
    }
    price = advice.price(estimate, refreshes)
    return {
        "request": asdict(request) | {"gpu": estimate.machine.name},
        "backbone": asdict(estimate.shape) | {"parameters": estimate.shape.num_parameters},
        "rows": {"count": rows.count, "mean_tokens": rows.tokens},
        "memory": {
            "num_memory_tokens": config.model.num_memory_tokens,
            "compression": rows.tokens / config.model.num_memory_tokens,
            "bytes_by_codec": {name: rows.count * size for name, size in estimate.row_bytes().items()},
            "codec_configured": config.corpus_job.codec,
            "codec": asdict(advice.codec(estimate, disk_bytes)),
            **{f"{name}_bytes": size for name, size in estimate.side_bytes().items()},
        },
        "index": {
            "factory": estimate.index.factory,
            "bytes": estimate.index.num_bytes,
            "words_bytes": estimate.words_bytes() if config.index_job.words else 0.0,
        },
        "hours": {name: asdict(figure.times(1 / _HOUR)) for name, figure in seconds.items()},
        "refresh": {
            "share_of_one": rhythm.share_of_one,
            "wanted_share": refresh_share,
            "most": rhythm.most,
            "every_steps": rhythm.every_steps,
            "rerank_share_of_a_step": estimate.rerank_seconds().value / seconds["joint_step"].value,
            "policy": asdict(rhythm.policy),
            "counted": refreshes,
        },
        "gpu_memory": advice.gpu_fit(estimate),
        "gpu_memory_assumed_bytes": gpu_memory.OTHER_BYTES,
        "price": {name: asdict(figure) for name, figure in price.items()} if price else None,
        "break_even": advice.break_even(estimate),
        "assumed": sorted(name for name, figure in seconds.items() if _is_assumed(figure)),
    }


def _is_assumed(figure: Figure) -> bool:
    return figure.assumed
