"""The settings of a synthesis, and how it ends: nothing lost, dead letters written, the manifest last."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.data.corpus import Fields
from clara.data.examples import join_examples
from clara.errors import InputError
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.counts import BEYOND_LIMIT, CHUNKS, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE
from pipelines.corpus.dead_letters import NAME
from pipelines.corpus.document_ids import EXAMPLE
from pipelines.corpus.exact_duplicates import REASON as DUPLICATE
from pipelines.corpus.filters import Filters
from pipelines.corpus.near_duplicates import Likeness
from pipelines.synthesize import dialogues as streams
from pipelines.synthesize import shards as work
from pipelines.synthesize.dialogues import Settings
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.local_model import FolderSettings
from pipelines.synthesize.prompts import Templates


@dataclass(frozen=True)
class Chunking:
    """How a corpus becomes chunks: which of its records stay, and by which tokens they are cut."""

    fields: Fields
    filters: Filters
    limit: int
    likeness: Likeness | None
    load_tokens: Callable[[], Tokens]
    max_tokens: int
    overlap_tokens: int


@dataclass(frozen=True)
class Job:
    """All that the workers need to know; it travels with the pipeline, so that it holds no secret.

    Attributes:
        output: directory of the EXAMPLES, on a file system that every worker sees.
        chunking: how the corpus becomes chunks.
        model: what is asked.
        templates: the prompts.
        settings: what is asked for.
        cache: directory of the replies of an endpoint.
        num_shards: 0: by the number of chunks.
        copies: of a folder's model that work at once; 0: one for each worker process. An endpoint is asked by one
            process.
        max_failures: more failures than this fail the job; below 0: no bound.
        recipe: what determines the result.
        key: hash of what determines the examples of a chunk.
    """

    output: str
    chunking: Chunking
    model: EndpointSettings | FolderSettings
    templates: Templates
    settings: Settings
    cache: str
    num_shards: int
    copies: int
    max_failures: int
    recipe: Mapping[str, Any]
    key: str


def complete(
    job: Job,
    reports: Sequence[Mapping[str, Any]],
    letter_files: Sequence[Mapping[str, Any]],
    reasons: Mapping[tuple[bool, str], int],
    tallies: Mapping[str, int],
    several: str,
) -> dict[str, Any]:
    """Complete the EXAMPLES and return their counts.

    Raises:
        InputError: the model could not be asked, there is no example, or more failed than allowed.
    """
    errors = sorted(report["error"] for report in reports if report.get("error"))
    if errors:
        raise InputError(errors[0])
    totals = Counter(tallies)
    for report in reports:
        totals.update(report["counts"])
    check_nothing_lost(totals, reasons, len(job.settings.kinds))
    failed = {reason: count for (dropped, reason), count in sorted(reasons.items()) if not dropped}
    dropped = {reason: count for (dropped, reason), count in sorted(reasons.items()) if dropped}
    where = f"{Path(job.output) / letter_files[0]['path']} names each"
    if not totals[streams.MADE]:
        raise InputError(
            f"no example could be made; failed: {failed or 'nothing'}, dropped: {dropped or 'nothing'}; {where}"
        )
    if 0 <= job.max_failures < sum(failed.values()):
        raise InputError(
            f"{sum(failed.values())} failures, --max-failures allows {job.max_failures}; by reason: {failed}; {where}"
        )
    counts = {**dict(sorted(totals.items())), "dead letters": sum(failed.values()), "dead letters by reason": failed}
    counts |= {"dropped": sum(dropped.values()), "dropped by reason": dropped}
    parts = [Path(job.output) / work.WORK / name / work.PART for name in sorted(report["name"] for report in reports)]
    manifest = join_examples(
        job.output,
        parts,
        recipe=job.recipe,
        counts=counts,
        extra_files=letter_files,
        prompts=job.templates.version,
        model=job.model.identity(),
    )
    told = {EXAMPLE: several} if several else {}
    return {
        **manifest["counts"],
        **told,
        "shards": len(reports),
        "shards reused": sum(report["reused"] for report in reports),
    }


def check_nothing_lost(totals: Mapping[str, int], reasons: Mapping[tuple[bool, str], int], num_kinds: int) -> None:
    """Check in = out + dropped + failed of records, chunks, examples, questions; a difference is a bug."""

    def letters(prefix: str, dropped: bool) -> int:
        return sum(count for (was, reason), count in reasons.items() if was is dropped and reason.startswith(prefix))

    def of(*names: str) -> int:
        return sum(totals.get(name, 0) for name in names)

    later = sum(
        letters(prefix, was)
        for prefix in (streams.EXAMPLE, streams.QUESTION, "not chunked", DUPLICATE)
        for was in (True, False)
    )
    unread = sum(reasons.values()) - later
    for stage, came_in, went_out in (
        ("reading", of(RECORDS), of(DOCUMENTS, BEYOND_LIMIT) + unread),
        ("deduplication", of(CHUNKS), of(UNIQUE, DUPLICATES)),
        ("telling of duplicates", of(DUPLICATES), letters(DUPLICATE, True)),
        ("planning", of(UNIQUE) * num_kinds, of(streams.STREAMS)),
        ("asking", of(streams.STREAMS), of(streams.MADE, streams.DROPPED, streams.FAILED)),
        ("telling what was dropped", of(streams.DROPPED), letters(streams.EXAMPLE, True)),
        ("telling what failed", of(streams.FAILED), letters(streams.EXAMPLE, False)),
        ("choosing questions", of(streams.QUESTIONS), of(streams.KEPT, streams.QUESTIONS_DROPPED, streams.OF_OTHERS)),
        ("telling of questions", of(streams.QUESTIONS_DROPPED), letters(streams.QUESTION, True)),
    ):
        if came_in != went_out:
            raise RuntimeError(
                f"{stage} lost records: {came_in} came in, {went_out} are accounted for; {dict(totals)}, reasons "
                f"{dict(reasons)}"
            )


def remove_work(output: Path, letter_files: Iterable[str]) -> None:
    """Remove what a finished artefact doesn't need, and dead letters of earlier attempts."""
    shutil.rmtree(output / work.WORK, ignore_errors=True)
    for file in output.glob(f"{NAME}*.jsonl"):
        if file.name not in letter_files:
            file.unlink(missing_ok=True)
