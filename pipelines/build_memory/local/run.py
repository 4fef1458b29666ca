"""`build_memory` on one machine, without Beam: chunks go to disk, so that memory does not grow with the corpus.

Units are read and chunked, and their chunks are spilled by partition; shards are then compressed from the partitions.
Only numbers of units and shards, counts and reports pass between processes. The result is byte for byte that of the
Beam graph: equal chunks have equal ids, so they meet in one partition, where the first in the corpus wins.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clara.memory.codec import CODECS
from pipelines.build_memory.local import first_pass
from pipelines.build_memory.local.records import NUM_GROUPS
from pipelines.build_memory.local.worker import ShardPlan, Worker
from pipelines.build_memory.outcome import MemoryJob, complete
from pipelines.build_memory.shard import default_num_shards
from pipelines.corpus import document_ids
from pipelines.corpus.dead_letters import num_parts_of
from pipelines.corpus.splits import Unit
from pipelines.engines.process_pool import WorkerPool


def run_local(job: MemoryJob, units: Sequence[Unit], num_workers: int) -> dict[str, Any]:
    """Build the MEMORY of a job that has a spill folder. Returns its counts.

    Raises:
        InputError: the input is not usable, or as raised by `complete`.
        BrokenProcessPool: a process was killed; what was finished is not done again by the next call.
    """
    # Units are numbered in the order of the corpus, that of (source, line).
    ordered = sorted(units, key=lambda unit: (unit.name, unit.first_line))
    numbered = list(enumerate(ordered))
    tallies: Counter[str] = Counter()
    reasons: Counter[tuple[bool, str]] = Counter()
    with WorkerPool(num_workers, Worker, replace(job, lease=None)) as pool:
        taken = _first_pass(pool, numbered, job)
        for report in pool.map(functools.partial(Worker.read_unit, taken=taken), numbered):
            _add(report, tallies, reasons)
        num_shards = job.num_shards or default_num_shards(sum(pool.map(Worker.count_unique, range(NUM_GROUPS))))
        codebook = None
        if CODECS[job.codec].has_codebook and not job.update:  # an update keeps that of the older version
            (codebook,) = pool.map(Worker.train_codebook, [num_shards])
        reports = []
        compress = functools.partial(Worker.compress, plan=ShardPlan(num_shards, codebook))
        for shard in pool.map(compress, range(num_shards)):
            if shard is not None:
                reports.append(shard["report"])
                _add(shard, tallies, reasons)
        compared = list(pool.map(Worker.compare_ids, range(document_ids.NUM_GROUPS)))
        tallies[document_ids.SEVERAL] = sum(count for count, _ in compared)
        _, several = min((first for _, first in compared if first), default=(None, ""))
        num_parts = num_parts_of(reasons.total())
        files = list(pool.map(functools.partial(Worker.write_letters, num_parts=num_parts), range(num_parts)))
    return complete(job, reports, files, reasons, tallies, several, num_shards, codebook)


def _first_pass(pool: WorkerPool[Worker], numbered: Sequence[tuple[int, Unit]], job: MemoryJob) -> list[int] | None:
    """How many documents of each unit are within the limit (None: all); finds near duplicates, too."""
    if not job.limit and not job.min_hash:
        return None
    counts = list(pool.map(Worker.survey, numbered))
    taken = first_pass.within_limit(counts, job.limit) if job.limit else None
    if job.min_hash:
        compare = functools.partial(Worker.compare, taken=taken, num_units=len(numbered))
        for _ in pool.map(compare, range(first_pass.NUM_PARTITIONS)):
            pass
    return taken


def _add(report: Mapping[str, Any], tallies: Counter[str], reasons: Counter[tuple[bool, str]]) -> None:
    tallies.update(report["tallies"])
    for dropped, reason, count in report["reasons"]:
        reasons[dropped, reason] += count
