"""After the last step of a joint run: the last re-encoding, where it is asked for, and the report."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from clara import artefact
from clara.config import Config
from training.joint_run import Places, places, threads_of_rank
from training.metrics import read
from training.pruning import deleted, prune
from training.refresh import RefreshResult, recall_of, run_job
from training.refresh_cost import cost
from training.run_state import keep_newest, run_states
from training.schedule import Version
from training.tries import lost_tries
from training.versions import Versions

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
    """What the canary set measured, by step: as in `training.canary.Canary.measure`."""
    found = []
    for step, values in metrics.items():
        if "canary_cosine" in values:
            found.append({"step": step, **{name.removeprefix("canary_"): v for name, v in values.items() if name.startswith("canary_")}})
    return found


def _oldest_step(version: Mapping[str, Any]) -> int:
    """Updates after which the snapshot of a version's oldest row was taken. A note of before there were mixed versions has one number for all."""
    return int(version.get("oldest_step", version["snapshot_step"]))


def _remove_unfinished(where: Places, state: Mapping[str, Any]) -> int:
    """Delete what a refresh left that was ended after the last step. Returns its number, 0 where there is none."""
    number = int((state["pending"] or {"number": 0})["number"])
    if not number or (where.run / f"refresh-v{number}.json").is_file():
        return 0
    for folder in (where.output / f"memory-v{number}", where.output / f"index-v{number}"):
        if not (folder / artefact.MANIFEST).exists():  # else it is whole, and may be another run's
            shutil.rmtree(folder, ignore_errors=True)
    return number


def finish(config: Config, run_refresh: Callable[..., RefreshResult] = run_job) -> dict[str, Any]:
    """After training: the last re-encoding, where it is asked for, and the report, which is returned.

    Of the run states the newest stays; versions that nobody uses are deleted, and what an unfinished refresh left.

    Args:
        config: the root.
        run_refresh: does a refresh job and waits for it.
    """
    where = places(config)
    settings = config.joint
    state = json.loads((where.run / "versions.json").read_text())
    current = dict(state["current"])
    began = time.monotonic()
    trained = settings.compressor_updates
    notes = [json.loads(p.read_text()) for p in where.run.glob("refresh-v*.json") if p.name.count(".") == 1]
    refreshes = sorted(notes, key=lambda note: int(note["number"]))
    in_use = next((r for r in refreshes if int(r["number"]) == int(current["number"])), current)
    lag = max(0, trained - _oldest_step(in_use))
    newest = max(refreshes, key=lambda r: int(r["number"]), default=None)
    if newest is not None and int(newest["number"]) > int(current["number"]):
        number = int(newest["number"])
        current = {"number": number, "memory": str(where.output / f"memory-v{number}"), "index": str(where.output / f"index-v{number}")}
        lag = max(0, trained - _oldest_step(newest))
    unfinished = _remove_unfinished(where, state)
    if settings.refresh.final and lag:
        versions = Versions(config, where.output, where.run, None, threads_of_rank(config, 1))
        versions.current = Version(**state["current"])
        number = max(int(current["number"]), unfinished) + 1
        result = run_refresh(versions.job(number, where.checkpoint, settings.steps))
        current = {"number": number, "memory": str(where.output / f"memory-v{number}"), "index": str(where.output / f"index-v{number}")}
        refreshes.append({"number": number, "snapshot_step": settings.steps, **vars(result)})
        lag = 0
    if lag:
        logger.warning(
            "MEMORY version %d lags the trained compressor by %d steps; set joint.refresh.final = true, or encode it anew",
            current["number"],
            lag,
        )
    report = summarise(config, where, current, refreshes, lag) | {
        "recall_at_10": recall_of(current["index"], warn=True).get("index_recall_at_10"),
        "memory_by_rank": state.get("memory_by_rank", []),
        "waited_after_last_step_seconds": state["waited_seconds"],
        "final_refresh_seconds": time.monotonic() - began,
    }
    # Nobody goes on from an older one any more, and what it names may go with it.
    keep_newest(where.run, 1)
    prune(
        where.output, where.run, current=int(current["number"]), keep=settings.refresh.keep_versions, states=run_states(where.run),
        step=settings.steps,
    )  # fmt: skip
    report["deleted_versions"] = deleted(where.run)
    artefact.atomic_write(where.report, json.dumps(report, indent=1) + "\n")
    return report


def summarise(config: Config, where: Places, current: Mapping[str, Any], refreshes: list[dict[str, Any]], lag_steps: int) -> dict[str, Any]:
    """The report: times, throughput, refreshes, versions by step, and where the newest MEMORY and INDEX lie."""
    metrics = read(where.metrics)
    ranks = 1 if config.launch.launcher == "local" else config.launch.num_workers
    seconds = sum(v["step_seconds"] for v in metrics.values())
    blocked = sum(v["blocked_seconds"] for v in metrics.values())
    manifest = artefact.read_manifest(current["memory"], "MEMORY")
    # Each shard is two files of the same rows.
    row_bytes = sum(f["bytes"] for f in manifest["files"]) / max(1, sum(f.get("rows", 0) for f in manifest["files"]) // 2)
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
        "search_budget_bytes_per_step": int(config.retrieval.first_level * row_bytes * config.joint.questions_per_step),
        "refreshes": refreshes,
        "refresh_cost": cost(config, threads_of_rank(config, ranks), metrics, refreshes, lost_tries(where.run)),
        "versions_by_step": version_spans(metrics),
        "staleness": staleness(metrics),
        "checkpoint": str(where.checkpoint),
        "memory": current["memory"],
        "index": current["index"],
        "memory_lag_steps": lag_steps,
        "last": metrics[max(metrics)] if metrics else {},
    }


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The report's figures of the whole run, for MLflow: how long it waited, what its refreshes cost, how old MEMORY is at the end."""
    found = {
        f"run.{name}": report[name]
        for name in (
            "questions_per_second", "blocked_seconds", "blocked_share", "waited_after_last_step_seconds", "rerank_seconds", "memory_lag_steps",
            "recall_at_10",
        )
    }  # fmt: skip
    found |= {f"run.refresh.{name}": value for name, value in report["refresh_cost"].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def made(where: Places, report: Mapping[str, Any]) -> dict[str, str]:
    """What a run made, as tags: where it lies, and manifest hashes."""
    tags: dict[str, str] = {}
    for name in ("checkpoint", "memory", "index"):
        if path := str(report[name]):
            tags |= {f"clara.made.{name}": path, f"clara.made.{name}.hash": artefact.manifest_hash(path)}
    return tags
