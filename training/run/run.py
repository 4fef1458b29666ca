"""A joint run on one rank, from the configuration to CHECKPOINT and report.

Launchers call `train_rank` and `finish`.
"""

import json
import logging
import resource
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from clara.config.tree import Config
from clara.data.questions import Question, choose, evenly, fold_of, read_questions
from clara.errors import InputError
from clara.index.keys import IndexKeys
from clara.index.search import MemoryIndex, OpenIndex
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.model import ClaraModel
from clara.model.question_mean import MEAN_QUESTIONS, set_missing_mean
from clara.storage.folders import atomic_write
from training.loop.engine import Engine
from training.loop.lines import Lines
from training.loop.loop import run
from training.refresh.canary import Canary, canary_questions
from training.refresh.process import Worker
from training.refresh.request import stored_parameters
from training.refresh.versions import Versions
from training.run.fold import check_fit, fitted_questions, kept_share, trained_questions
from training.run.index_checks import check_index, check_refresh
from training.run.recipe import (
    LOCK_SECONDS,
    RunPaths,
    own_backbone,
    recipe_settings,
    sole_user,
    threads_of_rank,
)
from training.run.recipe_changes import note_recipe, warn_of_other_run
from training.score_fit.fold import FoldFit
from training.stages.held_out import HeldOut
from training.stages.joint_checks import trained_roles
from training.stages.joint_stage import JointStage
from training.stages.scored_stage import ScoredStage, check_scored
from training.stages.standard_rag import check_reads

logger = logging.getLogger(__name__)


def build_stage(
    config: Config, model: ClaraModel, where: RunPaths, worker: Worker | None, open_index: OpenIndex, own: bool
) -> JointStage:
    """The stage of a configuration; `own`: whether the CHECKPOINT that it starts from holds its LM itself."""
    versions = Versions(config, where.output, where.run, worker, config.joint.refresh.threads, open_index)
    trained = trained_questions(config)
    stage, fitted = ScoredStage if config.utilities else JointStage, fitted_questions(config)
    return stage(
        model,
        trained,
        config,
        versions,
        held_out=build_held_out(config, trained),
        canary=build_canary(config, versions),
        fold=FoldFit(fitted, config, where.run) if fitted else None,
        store_backbone=own,
    )


def build_held_out(config: Config, trained: Sequence[Question]) -> HeldOut | None:
    """Questions that are looked at during training, where that is asked for.

    Args:
        config: the root.
        trained: training questions, see `HeldOut`.

    Raises:
        InputError: there is no such question.
    """
    joint = config.joint
    if not joint.evaluate_every:
        return None
    pools = joint.published_pool or joint.evaluate_pools
    questions = [q for q in read_questions(config.questions) if q.candidate_ids or not pools]
    if joint.evaluate_on == "fold":
        inside, _ = fold_of([q for q in questions if q.split == "train" and q.positive_ids], joint.fit_share)
        chosen = evenly(sorted(inside, key=lambda q: q.question_id), joint.evaluate_questions)
        which = f"of the fold of joint.fit_share={joint.fit_share:g}"
    else:
        chosen, which = choose(questions, joint.evaluate_questions), "(split unseen or seen)"
    if not chosen:
        wanted = "a positive and candidates" if pools else "a positive"
        raise InputError(
            f"questions {config.questions!r}: no held-out question with {wanted} {which}, which "
            "joint.evaluate_every requires; set it to 0 or make questions with a split"
        )
    return HeldOut(
        chosen,
        num_selected=joint.num_selected,
        published_pool=pools,
        fresh=joint.evaluate_fresh,
        answer_tokens=joint.evaluate_answer_tokens,
        trained=trained,
    )


def build_canary(config: Config, versions: Versions) -> Canary | None:
    """What staleness is measured with, where that is asked for; of training questions there is always one."""
    settings = config.joint.refresh
    if not settings.canary_every:
        return None
    questions = canary_questions(read_questions(config.questions), max(1, settings.canary_rows // 2))
    return Canary(
        questions,
        versions.open()[0],
        num_rows=settings.canary_rows,
        num_selected=config.joint.num_selected,
    )


def preflight(config: Config, where: RunPaths) -> None:
    """Open everything that the ranks will open, so that errors are reported here and not by each of them.

    Raises:
        InputError: an input is unfinished, damaged, or does not fit the others, or a refresh could not work.
    """
    store, _ = Versions(config, where.output, where.run, None, 1).open()
    settings = Checkpoint.open(config.checkpoint, lazy=True).settings
    keys = IndexKeys(store, settings.score)
    check_index(config, keys)
    check_refresh(config, keys)
    trained_questions(config)
    check_fit(config, store)
    trained_roles(config)
    check_reads(settings, config)
    if config.utilities:
        check_scored(config)
    made_by = {**where.recipe, "settings": recipe_settings(config, exclude_defaults=False)}
    warn_of_other_run(where.output, where.run, made_by)
    try:
        where.run.mkdir(parents=True, exist_ok=True)
        note_recipe(where.run, made_by)
    except OSError as error:
        raise InputError(
            f"output {config.output!r}: cannot be written ({error.strerror}); choose a directory that you may write to"
        ) from error


def memory_by_rank(engine: Engine) -> list[dict[str, int]]:
    """Bytes that each rank holds, see `Engine.held_bytes`, and the peak of its process and GPU (a collective)."""
    held = engine.held_bytes() | {
        "process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_peak": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0,
    }
    rows = engine.gather(torch.tensor(list(held.values()), dtype=torch.int64)).tolist()
    return [dict(zip(held, row, strict=True)) for row in rows]


def train_rank(
    config: Config,
    where: RunPaths,
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
        where: directories and recipe of the run.
        make_engine: an `Engine` for the stage; every rank calls it at the same time.
        num_ranks: that share this machine's cores.
        worker: runs refreshes for rank 0.
        device: of the model.
        open_index: how this rank reaches the INDEX of a version.

    Raises:
        InputError: what it reads is damaged, or there is no room for the figures, even at the end, or for the
            CHECKPOINT.
    """
    where.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads_of_rank(config, num_ranks))
    model = load_checkpoint(config.checkpoint, config.backbone, device=device)
    set_missing_mean(model, [q.question for q in evenly(read_questions(config.questions, "train"), MEAN_QUESTIONS)])
    own = own_backbone(config)
    stage = build_stage(config, model, where, worker, open_index, own)
    engine = make_engine(stage)
    figures = Lines(where.metrics)

    def log(step: int, values: dict[str, float]) -> None:
        figures.add({"step": step, **values})

    with sole_user(where.run / "lock", wait_seconds=LOCK_SECONDS) if engine.rank == 0 else nullcontext():
        run(
            stage,
            engine,
            where.run,
            seed=config.seed,
            checkpoint_every=config.joint.checkpoint_every,
            log=log,
            on_nonfinite=config.joint.on_nonfinite,
        )
        stage.versions.finish()
        figures.finish()
    memory = memory_by_rank(engine)
    with engine.whole(stored_parameters(model, own)):
        if engine.rank == 0:
            versions = stage.versions
            state = versions.state() | {"waited_seconds": versions.blocked_seconds, "memory_by_rank": memory}
            atomic_write(where.run / "versions.json", json.dumps(state, indent=1) + "\n")
            save_checkpoint(
                model,
                where.checkpoint,
                stage="joint",
                recipe=where.recipe,
                store_backbone=own,
                fit_share=kept_share(config),
            )
    engine.barrier()
