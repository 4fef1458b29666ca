"""What follows from an estimate: codec, refresh policy and rhythm, ZeRO stage, price, and when compression pays."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.plan import gpu_memory, work
from infra.plan.estimate import Estimate
from infra.plan.machines import RESULTS
from training.refresh.cost import Devices

USABLE = 0.9
"""Share of a GPU's memory that a run may be planned to fill."""
_SMALL_BYTES = 10 * 10**9
_WORST_NATS = 0.5
_FEW_REFRESHES, _INCREMENTAL_REFRESHES = 3, 6
_HOUR = 3600.0


@dataclass(frozen=True)
class Choice:
    """What to choose, and why in a sentence."""

    name: str
    why: str


def codec_quality(file: Path = RESULTS / "codecs" / "results.json") -> dict[str, dict[str, float]]:
    """By codec, at the strongest compression that `benchmarks.codecs` measured.

    Cosine to float16, and nats that an answer loses with the right document.
    """
    rows = json.loads(file.read_text(encoding="utf-8"))["measured"]
    strongest = max(row["compression"] for row in rows)
    return {
        row["codec"]: {
            "cosine": row["cosine"],
            "nats": -row["against"].get("right.log_likelihood", {"difference": 0.0})["difference"],
        }
        for row in rows
        if row["compression"] == strongest
    }


def codec(estimate: Estimate, disk_bytes: float) -> Choice:
    """The least lossy codec that suits the disk; float16 where all of MEMORY is small anyway."""
    total = {name: estimate.rows.count * size for name, size in estimate.row_bytes().items()}
    other = sum(estimate.side_bytes().values())
    if total["float16"] <= _SMALL_BYTES and total["float16"] + other <= disk_bytes:
        return Choice("float16", "all of MEMORY is small; no other codec saves much")
    quality = codec_quality()
    for name in ("int8", "int4", "pq4", "pq8"):
        if total[name] + other <= disk_bytes:
            lost = quality[name]
            measured = f"cosine {lost['cosine']:.4f}, {max(0.0, lost['nats']):.2f} nats of an answer, measured"
            poor = "; expect worse answers" if lost["nats"] > _WORST_NATS else ""
            return Choice(name, f"the least lossy one with fewer bytes that fits the disk ({measured}{poor})")
    return Choice(
        "none", f"no codec fits {disk_bytes / 1e12:.2f} TB: pq8 needs {(total['pq8'] + other) / 1e12:.2f} TB in all"
    )


@dataclass(frozen=True)
class Rhythm:
    """Refreshes that a run can pay for.

    Attributes:
        share_of_one: of the run's device time that one full refresh takes.
        most: full refreshes within the wanted share, and one after the other within the run.
        every_steps: steps between them; 0: none.
        policy: what to set, and why.
    """

    share_of_one: float
    most: int
    every_steps: int
    policy: Choice


def rhythm(estimate: Estimate, wanted_share: float) -> Rhythm:
    """How often all rows can be encoded again, if refreshes may take this share of all device time."""
    request, joint = estimate.request, estimate.config.joint
    run, one = estimate.joint_seconds().value, estimate.refresh_seconds().value
    share = Devices(request.gpus, request.refresh_gpus, alike=True).share(one, run) or 0.0
    # With r = share / (1 - share) of one refresh, n of them take n · r / (1 + n · r).
    paid = wanted_share / (1 - wanted_share) * (1 - share) / share
    most = math.floor(min(paid, run / one))
    return Rhythm(share, most, joint.steps // most if most else 0, _policy(estimate, most, paid, wanted_share))


def _policy(estimate: Estimate, most: int, paid: float, wanted: float) -> Choice:
    joint, rows = estimate.config.joint, estimate.rows.count
    if not joint.train_compressor:
        return Choice("none", "the compressor is frozen, so that MEMORY stays true")
    if most >= _FEW_REFRESHES:
        every = joint.steps // most
        return Choice("full", f"{most} whole encodings fit {wanted:.0%} of the device time: every_steps = {every}")
    again = joint.num_candidates * joint.questions_per_step * joint.steps
    if again < rows:
        cost = estimate.rerank_seconds().value / estimate.step_seconds().value
        return Choice(
            "none, with rerank and final",
            f"a run reads {again:,} candidates, fewer than the {rows:,} rows: encoding each pool afresh costs "
            f"{cost:.0%} of a step",
        )
    return Choice(
        "incremental, with final",
        f"{paid:.2g} whole encodings fit {wanted:.0%} of the device time: share = "
        f"{min(1.0, paid / _INCREMENTAL_REFRESHES):.2g}, every_steps = "
        f"{max(1, joint.steps // _INCREMENTAL_REFRESHES)}",
    )


def gpu_fit(estimate: Estimate) -> dict[str, Any]:
    """Bytes of a GPU by ZeRO stage, whether they fit, and the first stage that does; nothing on a CPU."""
    request, memory = estimate.request, estimate.machine.memory_bytes
    if not memory:
        return {}
    stages = {0: "one process"} if request.gpus == 1 else {n: f"ZeRO {n}" for n in (1, 2, 3)}
    found: dict[str, Any] = {"usable_bytes": USABLE * memory, "stages": {}}
    for stage, name in stages.items():
        parts = gpu_memory.per_gpu(estimate.config, estimate.shape, estimate.lengths, request.gpus, stage)
        found["stages"][name] = {"bytes": parts, "fits": parts["total"] <= USABLE * memory}
    fitting = [name for name, of in found["stages"].items() if of["fits"]]
    # ZeRO 1 and 2 hold the same between updates; 2 has no whole gradients.
    best = "ZeRO 2" if "ZeRO 2" in fitting else (fitting[0] if fitting else "")
    return {**found, "choice": best, "advice": "" if best else _to_fit(estimate)}


def _to_fit(estimate: Estimate) -> str:
    config, ways = estimate.config, []
    if not config.backbone.gradient_checkpointing:
        ways.append("backbone.gradient_checkpointing=true")
    if config.joint.micro_batch > 1:
        ways.append("joint.micro_batch=1")
    if config.backbone.dtype == "float32":
        ways.append("backbone.dtype=bfloat16")
    ways.append("more GPUs with ZeRO 3" if estimate.request.gpus > 1 else "a larger GPU, or several")
    return "does not fit; try " + ", ".join(ways)


def break_even(estimate: Estimate) -> dict[str, Any]:
    """Answers after which compressing once has cost less than reading raw text for each answer.

    Both are counted in operations, so that the figure depends on no machine; what joint training costs is shown apart,
    as it buys quality and not cheaper reading.
    """
    config, shape, lengths = estimate.config, estimate.shape, estimate.lengths
    once = estimate.rows.count * work.compression(config, shape, lengths)
    each = work.answer(config, shape, lengths)
    saved = each["text"] - each["memory"]
    trained = config.joint.steps * config.joint.questions_per_step * work.joint_question(config, shape, lengths)
    return {
        "operations_of_compression": once,
        "operations_of_an_answer_from_memory": each["memory"],
        "operations_of_an_answer_from_text": each["text"],
        "tokens_of_text_per_answer": config.joint.num_selected * lengths.chunk,
        "answers": math.ceil(once / saved) if saved > 0 else None,
        "answers_with_joint_training": math.ceil((once + trained) / saved) if saved > 0 else None,
    }


def price(estimate: Estimate, full_refreshes: int) -> dict[str, Any] | None:
    """Money for GPUs at the rate that was given; None without one."""
    request = estimate.request
    if not request.price:
        return None
    per_second = request.price / _HOUR
    parts = {
        "compression": estimate.compression_seconds(request.gpus).times(request.gpus * per_second),
        "joint": estimate.joint_seconds().times(request.gpus * per_second),
        "refreshes": estimate.refresh_seconds().times(full_refreshes * request.refresh_gpus * per_second),
    }
    total = parts["compression"].plus(parts["joint"]).plus(parts["refreshes"])
    return {**parts, "total": total}
