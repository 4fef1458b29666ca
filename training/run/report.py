"""The report of a joint run, and what is deleted after its last step."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from clara.config.tree import Config
from clara.storage.folders import atomic_write
from clara.storage.manifest import manifest_hash, read_manifest
from training.loop.lines import read
from training.loop.run_state import keep_newest, run_states
from training.refresh.attempts import lost_tries
from training.refresh.cost import cost
from training.refresh.job import recall_of
from training.refresh.retention import deleted, prune
from training.run.last_encoding import FinishedRun, final_refresh_due, finished_run
from training.run.last_fit import last_fit
from training.run.recipe import RunPaths, threads_of_rank

logger = logging.getLogger(__name__)


def version_spans(metrics: Mapping[int, Mapping[str, float]]) -> list[dict[str, int]]:
    """Which MEMORY version each step used, as spans."""
    spans: list[dict[str, int]] = []
    for step, values in metrics.items():
        version = int(values["used_memory_version"])
        if spans and spans[-1]["version"] == version:
            spans[-1]["last_step"] = step
        else:
            spans.append({"version": version, "first_step": step, "last_step": step})
    return spans


def staleness(metrics: Mapping[int, Mapping[str, float]]) -> list[dict[str, float]]:
    """What the canary set measured, by step: as in `training.refresh.canary.Canary.measure`."""
    found = []
    for step, values in metrics.items():
        if "canary_cosine" in values:
            found.append(
                {
                    "step": step,
                    **{name.removeprefix("canary_"): v for name, v in values.items() if name.startswith("canary_")},
                }
            )
    return found


def finish(config: Config, where: RunPaths) -> dict[str, Any]:
    """After training, and the last re-encoding where it is asked for: the report, which is returned.

    Of the run states the newest stays; versions that nobody uses are deleted. What the last re-encoding needs stays
    until it is made.
    """
    settings, found = config.joint, finished_run(config, where)
    if found.lag_steps and not settings.refresh.final:
        logger.warning(
            "MEMORY version %d lags the trained compressor by %d steps; set joint.refresh.final = true, or encode it "
            "again",
            found.current,
            found.lag_steps,
        )
    report = summarise(config, where, found) | {
        "recall_at_10": recall_of(found.index, warn=True).get("index_recall_at_10"),
        "memory_by_rank": found.state.get("memory_by_rank", []),
        "waited_after_last_step_seconds": found.state["waited_seconds"],
        "last_fit": last_fit(where),
    }
    # No run resumes from an older one any more, so that the versions it names may be deleted.
    keep_newest(where.run, 1)
    needed = int(found.state["current"]["number"]) if final_refresh_due(config, found) else found.current
    prune(
        where.output,
        where.run,
        current=needed,
        keep=settings.refresh.keep_versions,
        states=run_states(where.run),
        step=settings.steps,
    )
    report["deleted_versions"] = deleted(where.run)
    atomic_write(where.report, json.dumps(report, indent=1) + "\n")
    return report


def summarise(config: Config, where: RunPaths, found: FinishedRun) -> dict[str, Any]:
    """The report: times, throughput, refreshes, versions by step, and paths of the newest MEMORY and INDEX."""
    metrics = read(where.metrics)
    ranks = config.launch.num_ranks
    seconds = sum(v["step_seconds"] for v in metrics.values())
    blocked = sum(v["blocked_seconds"] for v in metrics.values())
    manifest = read_manifest(found.memory, "MEMORY")
    # Each shard is two files of the same rows.
    num_rows = max(1, sum(f.get("rows", 0) for f in manifest["files"]) // 2)
    row_bytes = sum(f["bytes"] for f in manifest["files"]) / num_rows
    # Few rows are read once for all questions; else each question has its own candidates.
    level = config.retrieval.first_level * config.joint.questions_per_step
    rows_read = num_rows if num_rows <= config.retrieval.exact_rows else level
    return {
        "run": where.run.name,
        "steps": len(metrics),
        "seconds": seconds,
        "questions_per_second": len(metrics) * config.joint.questions_per_step / seconds if seconds else 0.0,
        "blocked_seconds": blocked,
        "blocked_share": blocked / seconds if seconds else 0.0,
        # What gathering run states took; they are written beside training.
        "run_state_seconds": sum(v.get("run_state_seconds", 0.0) for v in metrics.values()),
        "search_seconds": sum(v["search_seconds"] for v in metrics.values()),
        "skipped_steps": [step for step, v in metrics.items() if v.get("skipped")],
        "rerank_seconds": sum(v.get("rerank_seconds", 0.0) for v in metrics.values()),
        "search_budget_bytes_per_step": int(rows_read * row_bytes),
        "refreshes": found.refreshes,
        "refresh_cost": cost(config, threads_of_rank(config, ranks), metrics, found.refreshes, lost_tries(where.run)),
        "versions_by_step": version_spans(metrics),
        "staleness": staleness(metrics),
        "checkpoint": str(where.checkpoint),
        "memory": found.memory,
        "index": found.index,
        "memory_lag_steps": found.lag_steps,
        "last": metrics[max(metrics)] if metrics else {},
    }


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The report's figures of the whole run, for MLflow: waiting, cost of refreshes, age of MEMORY at the end."""
    found = {
        f"run.{name}": report[name]
        for name in (
            "questions_per_second",
            "blocked_seconds",
            "blocked_share",
            "waited_after_last_step_seconds",
            "rerank_seconds",
            "memory_lag_steps",
            "recall_at_10",
        )
    }
    found |= {f"run.refresh.{name}": value for name, value in report["refresh_cost"].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def made(where: RunPaths, report: Mapping[str, Any]) -> dict[str, str]:
    """What a run made, as tags: paths and manifest hashes."""
    tags: dict[str, str] = {}
    for name in ("checkpoint", "memory", "index"):
        if path := str(report[name]):
            tags |= {f"clara.made.{name}": path, f"clara.made.{name}.hash": manifest_hash(path)}
    return tags
