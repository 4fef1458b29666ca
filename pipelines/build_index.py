"""INDEX over a MEMORY: FAISS over its keys, the words of its texts for BM25, and dense vectors on request.

python -m pipelines.build_index --memory DIR --output DIR
python -m pipelines.build_index --memory DIR --output DIR --checkpoint DIR     (for the score of a CHECKPOINT)
python -m pipelines.build_index --memory DIR --output DIR --dense-model FOLDER --runner SparkRunner …

Recall@10 is measured against exact search, with rows of the INDEX itself as queries: each one's memory plus Gaussian
noise of half its length. No row is held back from the INDEX. Questions that a query reasoner encodes may be farther
from the rows, and their recall may be another; python -m training.evaluate measures what is found for questions.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.config.tree import Config
from clara.errors import InputError, command_line
from clara.memory.store import MemoryStore
from clara.storage import paths
from clara.storage.artefact import Artefact
from clara.storage.manifest import refuse_other
from pipelines.engines.pipeline import pipeline_of
from pipelines.job.artefact_job import ArtefactJob, nothing

if TYPE_CHECKING:
    from clara.index.dense import BlockWorkers
    from clara.index.recipe import Build


def parser() -> Command:
    """The command line's arguments."""
    found = Command("pipelines.build_index", __doc__)
    add_setting(found, "memory", metavar="DIR", required=True)
    add_setting(found, "output", metavar="DIR", required=True)
    add_setting(
        found,
        "checkpoint",
        metavar="DIR",
        note="the INDEX is for its score; empty: for the published score",
    )
    add_setting(found, "retrieval.factory")
    add_setting(found, "index_job.probes")
    add_setting(found, "seed")
    add_setting(found, "retrieval.first_level", metavar="L")
    add_setting(found, "retrieval.exact_rows")
    for name in ("queries", "measure_gib", "recall_floor", "strict_recall", "gpu"):
        add_setting(found, f"index_job.{name}")
    add_setting(found, "index_job.parent", metavar="DIR")
    add_setting(found, "index_job.words", "--no-words")
    add_dense_settings(found)
    add_setting(found, "device")
    add_setting(
        found,
        "engine.runner",
        note="computes dense vectors, local: this process does; arguments that are not listed here are Beam's own",
    )
    add_setting(found, "engine.num_workers", note="with --runner")
    add_setting(found, "index_job.verify", "--no-verify")
    found.add_argument("--quiet", action="store_true", help="no progress bars")
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return found


def check(config: Config) -> None:
    """Refuse settings that contradict each other.

    Raises:
        InputError: which flag, and what was expected.
    """
    from clara.index.recall import RECALL_AT  # imports FAISS, as the others

    if config.retrieval.first_level < RECALL_AT:
        raise InputError(
            f"--first-level {config.retrieval.first_level}; expected at least {RECALL_AT}, as recall@{RECALL_AT} is "
            "measured"
        )
    if config.index_job.strict_recall and not config.index_job.queries:
        raise InputError(
            "--strict-recall with --queries 0: recall is not measured, so nothing can be refused; leave one of them out"
        )


def build_of(config: Config, workers: "BlockWorkers | None", *, progress: bool) -> "Build":
    """How the INDEX is built; `workers` compute dense vectors, None: this process does."""
    from clara.index.dense_model import is_endpoint, open_encoder
    from clara.index.recall import Measurement
    from clara.index.recipe import Build
    from clara.index.search import KIND
    from clara.model.array_geometry import PUBLISHED
    from clara.model.artefact import Checkpoint

    job = config.index_job
    is_endpoint(config.retrieval)  # refuses what is for an endpoint where there is none
    dense = open_encoder(config.retrieval, config.device) if config.retrieval.dense_model else None
    return Build(
        factory=config.retrieval.factory,
        seed=config.seed,
        probes=job.probes,
        measurement=Measurement(config.retrieval.first_level, job.queries, most_bytes=int(job.measure_gib * 2**30)),
        recall_floor=job.recall_floor,
        strict_recall=job.strict_recall,
        gpu=job.gpu,
        verify=job.verify,
        words=job.words,
        dense=dense,
        dense_workers=workers,
        parent=Artefact.open(job.parent, KIND) if job.parent else None,
        progress=progress,
        score=Checkpoint.open(config.checkpoint, lazy=True).settings.score if config.checkpoint else PUBLISHED,
        exact_rows=config.retrieval.exact_rows,
    )


def workers_of(config: Config, beam_arguments: Sequence[str]) -> "BlockWorkers | None":
    """What computes the dense vectors; None: this process.

    Raises:
        InputError: a runner and no vectors for it, or arguments that are not valid.
    """
    pipeline = pipeline_of(config.engine.runner, config.engine.num_workers, beam_arguments)
    if pipeline is None:
        return None
    if not config.retrieval.dense_model:
        raise InputError(
            f"--runner {config.engine.runner}: it computes dense vectors, and --dense-model is empty; give one of them"
        )
    from clara.index.build import BUILD
    from clara.index.dense import BlockWorkers
    from pipelines.dense_blocks import BlocksJob, write_blocks  # imports Beam

    def whole(path: str) -> str:
        return paths.absolute(path) if path else ""

    model = config.retrieval.only_dense()
    model = model.model_copy(update={"dense_model": whole(model.dense_model)})
    job = BlocksJob(whole(config.memory), whole(config.index_job.parent), model, config.device)
    return BlockWorkers(
        functools.partial(write_blocks, job, pipeline),
        paths.join(config.output, BUILD) if paths.is_url(config.output) else "",
    )


def main(argv: list[str]) -> int:
    """The command line."""
    options, beam_arguments = parser().parse_known_args(argv)
    check(options.config)
    from clara.index.build import build
    from clara.index.factory import check_kind
    from clara.index.gpu import require_gpu
    from clara.index.keys import IndexKeys
    from clara.index.recipe import recipe_of
    from clara.index.search import KIND

    how = build_of(options.config, workers_of(options.config, beam_arguments), progress=not options.quiet)
    refuse_other(options.output, KIND)  # before the lock, which is a file there

    def plan() -> dict[str, Any]:
        if how.gpu:
            require_gpu()
        store = MemoryStore.open(options.memory)
        keys = IndexKeys(store, how.score)
        recipe = recipe_of(keys, how)
        check_kind(keys, recipe["factory"], how.probes)
        return {**recipe, "rows": len(store), "key_size": keys.size, "output": options.output}

    def report(manifest: Mapping[str, Any]) -> None:
        print(
            f"{options.output}: INDEX of {manifest['counts']['rows']} rows, {manifest['factory']}, "
            f"{json.dumps(manifest['measured'])}"
        )

    return ArtefactJob(
        output=options.output,
        kind=KIND,
        plan=plan,
        recipe=None,  # `build` compares it, as it may have to note another recall floor
        prepare=nothing,
        write=lambda _, lease: build(options.memory, options.output, how),
        report=report,
    ).run(dry_run=options.dry_run)


if __name__ == "__main__":
    command_line(main)
