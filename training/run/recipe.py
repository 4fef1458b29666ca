"""What a joint run is made from, where it writes, and whether it has finished."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic.main import IncEx

from clara.config.tree import Config
from clara.errors import InputError
from clara.index.dense_model import model_hash
from clara.storage.manifest import hash_of, manifest_hash, read_manifest, up_to_date
from clara.storage.paths import from_root
from training.loop.shares import shard

METRICS = "metrics.jsonl"
REPORT = "report.json"
LOCK_SECONDS = 60.0
# Who computes, how long a run waits and what it keeps does not change what is computed.
_NOT_OF_THE_RECIPE: Mapping[str, IncEx] = {
    "joint": {
        "checkpoint_every": True,
        "micro_batch": True,
        "refresh": {
            "num_workers",
            "num_cpus",
            "num_gpus",
            "max_attempts",
            "max_seconds",
            "wait_seconds",
            "keep_versions",
        },
    },
    "retrieval": {
        # Where the embedding model is does not count, its hash does, which is among the inputs.
        *("dense_model", "dense_name", "dense_question_prompt", "dense_text_prompt", "dense_size"),
        *("dense_key_variable", "dense_concurrency", "dense_seconds"),
        *("search_shards", "search_seconds", "search_restarts", "search_cpus"),
    },
}
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class RunPaths:
    """Where a run writes, and what it is made from: its directory is named by the hash of its recipe.

    Attributes:
        output: the directory that the user named.
        run: the run's own directory in it.
        recipe: as returned by `recipe`.
    """

    output: Path
    run: Path
    recipe: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The trained CHECKPOINT."""
        return self.output / "checkpoint"

    @property
    def metrics(self) -> Path:
        """Figures of every step; the last line of a step holds."""
        return self.run / METRICS

    @property
    def tracked(self) -> Path:
        """Which MLflow run holds it all; written once that is complete."""
        return self.run / "mlflow.json"

    @property
    def report(self) -> Path:
        """The report, written at the end."""
        return self.output / REPORT


def plan(config: Config) -> dict[str, int]:
    """Who does how much.

    Raises:
        InputError: the questions of a step do not divide evenly among the ranks.
    """
    joint, ranks = config.joint, config.launch.num_ranks
    own = shard(range(joint.questions_per_step), 0, ranks, joint.micro_batch)
    return {
        "steps": joint.steps,
        "ranks": ranks,
        "questions_per_step": joint.questions_per_step,
        "micro_batches_of_a_rank": len(own),
    }


def absolute(config: Config) -> Config:
    """The same configuration with absolute paths, as ranks run in their own directories; URLs stay."""
    names = ("checkpoint", "questions", "memory", "index", "utilities", "output")
    paths = {name: from_root(path) for name in names if (path := getattr(config, name))}
    backbone = config.backbone.path
    if not backbone and not own_backbone(config):
        backbone = str(read_manifest(config.checkpoint, "CHECKPOINT")["backbone"]["path"])
    section = config.backbone.model_copy(update={"path": from_root(backbone) if backbone else ""})
    retrieval = config.retrieval
    if retrieval.dense_model:
        retrieval = retrieval.model_copy(update={"dense_model": from_root(retrieval.dense_model)})
    return config.model_copy(update={**paths, "backbone": section, "retrieval": retrieval})


def recipe(config: Config) -> dict[str, Any]:
    """What determines the CHECKPOINT: settings of the stage, and hashes of its inputs, whose manifests are read.

    Settings at their defaults are excluded, so that adding a setting does not invalidate earlier runs.
    """
    names = ("checkpoint", "questions", "memory", "index", "utilities")
    inputs = {name: manifest_hash(path) for name in names if (path := getattr(config, name))}
    if config.joint.from_dense and (not config.utilities or config.joint.fit_questions):
        inputs["dense_model"] = model_hash(config.retrieval)
    return {"settings": recipe_settings(config), "dtype": config.backbone.dtype, "inputs": inputs}


def recipe_settings(config: Config, *, exclude_defaults: bool = True) -> dict[str, Any]:
    """The settings of a recipe.

    Who computes is not part of it: a run may be resumed on other ranks and with other micro-batches, which sum the same
    numbers in another order. (Dropout is drawn by each rank for each micro-batch, so that with it the numbers are
    others, of the same kind.)

    Args:
        config: the root.
        exclude_defaults: False: all settings, to show them to a person.
    """
    sections = {"seed", "stage", "joint", "retrieval"}
    settings = config.model_dump(include=sections, exclude=_NOT_OF_THE_RECIPE, exclude_defaults=exclude_defaults)
    return _without_empty_sections(settings)


def _without_empty_sections(tree: dict[str, Any]) -> dict[str, Any]:
    """A section of which only excluded settings were set is as if it was not there."""
    kept = {name: _without_empty_sections(value) if isinstance(value, dict) else value for name, value in tree.items()}
    return {name: value for name, value in kept.items() if value != {}}


def run_paths(config: Config) -> RunPaths:
    """Directories and recipe of a run; runs of different recipes have different directories."""
    output, made_by = Path(config.output).absolute(), recipe(config)
    return RunPaths(output, output / f"run-{hash_of(made_by)[:12]}", made_by)


def finished(config: Config, where: RunPaths) -> bool:
    """Whether CHECKPOINT, report and, if enabled, last re-encoding and tracking of this run are complete."""
    if not up_to_date(where.checkpoint, "CHECKPOINT", where.recipe) or not where.report.is_file():
        return False
    if config.tracking.uri and not (
        where.tracked.is_file() and json.loads(where.tracked.read_text())["uri"] == config.tracking.uri
    ):
        return False
    report = json.loads(where.report.read_text())
    encoded = not (config.joint.refresh.final and report.get("memory_lag_steps"))
    return bool(report.get("run") == where.run.name) and encoded


def own_backbone(config: Config) -> bool:
    """Whether the CHECKPOINT that the run starts from holds its LM itself."""
    return bool(read_manifest(config.checkpoint, "CHECKPOINT")["backbone"]["own"])


def threads_of_rank(config: Config, num_ranks: int) -> int:
    """Torch threads of a rank."""
    return config.launch.threads or max(1, (os.cpu_count() or 1) // num_ranks)


@contextmanager
def sole_user(path: Path, *, wait_seconds: float) -> Iterator[None]:
    """Lock the directory of a run: no other process, nor the ranks of a run that was just killed, trains there.

    Raises:
        InputError: another process still holds the lock after the wait.
    """
    try:
        lock = FileLock(path, timeout=wait_seconds).acquire()
    except Timeout as error:
        raise InputError(
            f"{path.parent}: another process trains there; wait until it is done, or give another output"
        ) from error
    with lock:
        yield
