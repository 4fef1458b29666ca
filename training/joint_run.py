"""A joint run on one rank, from the configuration to the CHECKPOINT, and its report. Launchers call `train_rank` and `finish`."""

import fcntl
import json
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clara import artefact
from clara.checkpoint import load_checkpoint, save_checkpoint
from clara.config import Config, Joint, require
from clara.errors import InputError
from clara.index import MemoryIndex
from clara.model import ClaraModel
from clara.questions import read_questions
from clara.refresh_settings import Refresh
from clara.section import Section
from clara.storage import from_root, is_url, require_local
from training.canary import Canary, canary_questions
from training.engine import Engine
from training.heldout import HeldOut, choose
from training.joint_checks import check_index, check_refresh, check_settings
from training.joint_stage import JointStage, trained_roles
from training.loop import run, shard
from training.metrics import Lines
from training.other_runs import note_recipe, tell_of_another
from training.refresh_worker import Worker
from training.scored_stage import ScoredStage, check_scored
from training.versions import OpenIndex, Versions, stored_parameters

logger = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
REPORT = "report.json"
LOCK_SECONDS = 60.0
_ADDED_TO_REFRESH = (
    "rerank", "canary_every", "canary_rows", "trigger_cosine", "max_staleness_steps", "when_stale", "rows", "share", "oldest_share",
    "look_ahead_steps", "rerank_lag_steps", "correction", "correction_ridge",
)  # fmt: skip
# Who computes, how long one waits, what is kept: none of it changes what is computed.
_NOT_OF_THE_RECIPE = {
    "joint": ("checkpoint_every", "micro_batch"),
    "joint.refresh": ("num_workers", "num_cpus", "num_gpus", "max_attempts", "max_seconds", "wait_seconds", "keep_versions"),
    "retrieval": ("search_shards", "search_seconds", "search_restarts", "search_cpus"),
}
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class Places:
    """Where a run writes."""

    output: Path
    run: Path

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
        """What the run came to."""
        return self.output / REPORT


def check(config: Config) -> None:
    """Refuse what could only fail later.

    Raises:
        InputError: a path is missing, or relative in a submitted job; a GPU is asked for and not there; settings contradict each other.
    """
    if config.stage != "joint":
        raise InputError(f"stage is {config.stage!r}; this program makes 'joint', training/pretrain.py the other two")
    searching = bool(config.joint.from_index) and not config.joint.published_pool and not config.utilities
    require(config, "output", "checkpoint", "questions", "memory", *["index"] * searching)
    plan(config)
    check_settings(config)
    if config.retrieval.search_shards and config.launch.launcher != "ray":
        raise InputError(
            f"retrieval.search_shards is {config.retrieval.search_shards}, launch.launcher {config.launch.launcher!r}: search servers are Ray actors; "
            "set launch.launcher=ray, or retrieval.search_shards=0"
        )
    require_local("output", config.output)
    if os.environ.get(_JOB_VARIABLE):
        for name in ("checkpoint", "questions", "memory", "index", "utilities", "output", "backbone.path"):
            value = config.backbone.path if name == "backbone.path" else getattr(config, name)
            if value and not is_url(value) and not Path(value).is_absolute():
                raise InputError(
                    f"{name} is {value!r}: a submitted job runs in a copy of the working directory, without what git ignores, so a relative path "
                    "leads nowhere; give an absolute one that every machine sees, or a URL"
                )
        uri = config.tracking.uri
        if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
            raise InputError(
                f"tracking.uri is {uri!r}: relative, and a submitted job runs elsewhere; give sqlite:////ABSOLUTE/PATH or a server's URL"
            )


def plan(config: Config) -> dict[str, int]:
    """Who does how much.

    Raises:
        InputError: the questions of a step do not divide evenly among the ranks.
    """
    joint, launch = config.joint, config.launch
    ranks = 1 if launch.launcher == "local" else launch.num_workers
    own = shard(range(joint.questions_per_step), 0, ranks, joint.micro_batch)
    return {"steps": joint.steps, "ranks": ranks, "questions_per_step": joint.questions_per_step, "micro_batches_of_a_rank": len(own)}


def absolute(config: Config) -> Config:
    """The same configuration with absolute paths: ranks run in directories of their own. URLs mean the same anywhere."""
    names = ("checkpoint", "questions", "memory", "index", "utilities", "output")
    paths = {name: from_root(path) for name in names if (path := getattr(config, name))}
    backbone = config.backbone.path
    if not backbone and not own_backbone(config):
        backbone = str(artefact.read_manifest(config.checkpoint, "CHECKPOINT")["backbone"]["path"])
    section = config.backbone.model_copy(update={"path": from_root(backbone) if backbone else ""})
    return config.model_copy(update={**paths, "backbone": section})


def _leave_out_defaults(tree: dict[str, Any], defaults: Section, names: Sequence[str]) -> None:
    """Take settings that have their defaults out of a recipe: they were added later, and a run made before them is still that run."""
    for name in names:
        if tree[name] == getattr(defaults, name):
            del tree[name]


def recipe(config: Config) -> dict[str, Any]:
    """What determines the CHECKPOINT: settings of the stage, and hashes of what it reads.

    Who computes is not among it: a run may be taken up on other ranks and by other micro-batches, which sum the same numbers in another order.
    (Dropout is drawn by each rank for each micro-batch, so that with it the numbers are others, of the same kind.)
    """
    names = ("checkpoint", "questions", "memory", "index", "utilities")
    inputs = {name: artefact.manifest_hash(path) for name in names if (path := getattr(config, name))}
    settings = config.model_dump(include={"seed", "stage", "joint", "retrieval"})
    _leave_out_defaults(settings["joint"], Joint(), ("on_nonfinite", "evaluate_answer_tokens", "evaluate_pools", "evaluate_fresh"))
    _leave_out_defaults(settings["joint"]["refresh"], Refresh(), _ADDED_TO_REFRESH)
    for section, left_out in _NOT_OF_THE_RECIPE.items():
        tree = settings
        for part in section.split("."):
            tree = tree[part]
        for name in left_out:
            del tree[name]
    return {"settings": settings, "dtype": config.backbone.dtype, "inputs": inputs}


def places(config: Config) -> Places:
    """Directories of a run; runs of different recipes don't meet."""
    output = Path(config.output).absolute()
    return Places(output, output / f"run-{artefact.hash_of(recipe(config))[:12]}")


def finished(config: Config) -> bool:
    """Whether the CHECKPOINT, the report and the last re-encoding of this very run are there, and are tracked, where these are asked for."""
    where = places(config)
    if not artefact.up_to_date(where.checkpoint, "CHECKPOINT", recipe(config)) or not where.report.is_file():
        return False
    if config.tracking.uri and not (where.tracked.is_file() and json.loads(where.tracked.read_text())["uri"] == config.tracking.uri):
        return False
    report = json.loads(where.report.read_text())
    encoded = not (config.joint.refresh.final and report.get("memory_lag_steps"))
    return bool(report.get("run") == where.run.name) and encoded


def own_backbone(config: Config) -> bool:
    """Whether the CHECKPOINT that the run starts from holds its LM itself."""
    return bool(artefact.read_manifest(config.checkpoint, "CHECKPOINT")["backbone"]["own"])


def threads_of_rank(config: Config, num_ranks: int) -> int:
    """Torch threads of a rank."""
    return config.launch.threads or max(1, (os.cpu_count() or 1) // num_ranks)


def build_stage(
    config: Config, model: ClaraModel, where: Places, worker: Worker | None, open_index: OpenIndex = MemoryIndex.open
) -> JointStage:
    """The stage that a configuration asks for."""
    versions = Versions(config, where.output, where.run, worker, config.joint.refresh.threads, open_index)
    held_out = None
    if config.joint.evaluate_every:
        joint = config.joint
        pools = joint.published_pool or joint.evaluate_pools
        chosen = choose([q for q in read_questions(config.questions) if q.candidate_ids or not pools], joint.evaluate_questions)
        if not chosen:
            wanted = "a positive and candidates of its own" if pools else "a positive"
            raise InputError(
                f"questions {config.questions!r}: no held-out question with {wanted} (split unseen or seen), which joint.evaluate_every asks "
                "for; set it to 0 or make questions with a split"
            )
        held_out = HeldOut(
            chosen, num_selected=joint.num_selected, published_pool=pools, fresh=joint.evaluate_fresh,
            answer_tokens=joint.evaluate_answer_tokens,
        )  # fmt: skip
    own = own_backbone(config)
    stage = ScoredStage if config.utilities else JointStage
    return stage(
        model, read_questions(config.questions, "train"), config, versions,
        held_out=held_out, canary=build_canary(config, versions), store_backbone=own,
    )  # fmt: skip


def build_canary(config: Config, versions: Versions) -> Canary | None:
    """What staleness is measured with, where that is asked for; of training questions there is always one."""
    settings = config.joint.refresh
    if not settings.canary_every:
        return None
    questions = canary_questions(read_questions(config.questions), max(1, settings.canary_rows // 2))
    ridge = settings.correction_ridge if settings.correction else 0.0
    return Canary(
        questions, versions.open()[0], num_rows=settings.canary_rows, num_selected=config.joint.num_selected, correction_ridge=ridge
    )


def preflight(config: Config) -> None:
    """Open everything that the ranks will open, so that what is wrong is said here and not by each of them.

    Raises:
        InputError: an input is unfinished, damaged, or does not fit the others, or a refresh could not work.
    """
    where = places(config)
    store, _ = Versions(config, where.output, where.run, None, 1).open()
    check_index(config, store)
    check_refresh(config, store)
    read_questions(config.questions, "train")
    trained_roles(config)
    if config.utilities:
        check_scored(config)
    made_by = recipe(config)
    tell_of_another(where.output, where.run, made_by)
    try:
        where.run.mkdir(parents=True, exist_ok=True)
        note_recipe(where.run, made_by)
    except OSError as error:
        raise InputError(
            f"output {config.output!r}: cannot be written ({error.strerror}); choose a directory that you may write to"
        ) from error


@contextmanager
def sole_user(path: Path, *, wait_seconds: float) -> Iterator[None]:
    """Inside, nobody else trains in this directory: not a second command, and not the ranks of a run that was killed a moment ago.

    Raises:
        InputError: somebody still does after the wait.
    """
    deadline = time.monotonic() + wait_seconds
    with open(path, "w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{path.parent}: another process trains there; wait until it is done, or give another output"
                    ) from error
                time.sleep(0.2)
        yield  # closing the file releases the lock, and so does the end of the process, however it ends


def memory_by_rank(engine: Engine) -> list[dict[str, int]]:
    """Bytes that each rank holds, as of `Engine.held_bytes`, and the most that its process, and its GPU, held at any time (a collective)."""
    held = engine.held_bytes() | {
        "process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_peak": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0,
    }
    rows = engine.gather(torch.tensor(list(held.values()), dtype=torch.int64)).tolist()
    return [dict(zip(held, row, strict=True)) for row in rows]


def train_rank(
    config: Config,
    make_engine: Callable[[JointStage], Engine],
    *,
    num_ranks: int,
    worker: Worker | None,
    device: str,
    open_index: OpenIndex = MemoryIndex.open,
) -> None:
    """Train on one rank to the last step, and write the CHECKPOINT.

    Args:
        config: the root, checked.
        make_engine: an `Engine` for the stage; every rank calls it at the same time.
        num_ranks: that share this machine's cores.
        worker: runs refreshes for rank 0.
        device: of the model.
        open_index: how this rank reaches the INDEX of a version.

    Raises:
        InputError: what it reads is damaged, or there is no room for the figures, even at the end, or for the CHECKPOINT.
    """
    where = places(config)
    where.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads_of_rank(config, num_ranks))
    model = load_checkpoint(config.checkpoint, config.backbone, device=device)
    stage = build_stage(config, model, where, worker, open_index)
    engine = make_engine(stage)
    figures = Lines(where.metrics)

    def log(step: int, values: dict[str, float]) -> None:
        figures.add({"step": step, **values})

    with sole_user(where.run / "lock", wait_seconds=LOCK_SECONDS) if engine.rank == 0 else nullcontext():
        run(
            stage, engine, where.run,
            seed=config.seed, checkpoint_every=config.joint.checkpoint_every, log=log, on_nonfinite=config.joint.on_nonfinite,
        )  # fmt: skip
        stage.versions.finish()
        figures.finish()
    own, memory = own_backbone(config), memory_by_rank(engine)
    with engine.whole(stored_parameters(model, own)):
        if engine.rank == 0:
            state = stage.versions.state() | {"waited_seconds": stage.versions.blocked_seconds, "memory_by_rank": memory}
            artefact.atomic_write(where.run / "versions.json", json.dumps(state, indent=1) + "\n")
            save_checkpoint(model, where.checkpoint, stage="joint", recipe=recipe(config), store_backbone=own)
    engine.barrier()
