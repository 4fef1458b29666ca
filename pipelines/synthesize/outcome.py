"""The settings of a synthesis, and how it ends: nothing lost, dead letters written, the manifest last."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.config.synthesis import Synthesis
from clara.data.examples import join_examples
from clara.data.fields import Fields
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.counts import BEYOND_LIMIT, CHUNKS, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE
from pipelines.corpus.dead_letters import NAME
from pipelines.corpus.document_ids import EXAMPLE
from pipelines.corpus.exact_duplicates import REASON as DUPLICATE
from pipelines.corpus.filters import Filters
from pipelines.corpus.near_duplicates import MinHashSettings
from pipelines.job.accounting import Account, raise_first_error
from pipelines.synthesize import dialogues as streams
from pipelines.synthesize import shards as work
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.folder_settings import FolderSettings
from pipelines.synthesize.prompts import Templates


@dataclass(frozen=True)
class Chunking:
    """How a corpus becomes chunks: which of its records stay, and by which tokens they are cut."""

    fields: Fields
    filters: Filters
    limit: int
    min_hash: MinHashSettings | None
    load_tokens: Callable[[], Tokens]
    max_tokens: int
    overlap_tokens: int


@dataclass(frozen=True)
class SynthesisJob:
    """All that the workers need to know; it travels with the pipeline, so that it holds no secret.

    Attributes:
        output: directory of the EXAMPLES, on a file system that every worker sees.
        chunking: how the corpus becomes chunks.
        model: what is asked.
        templates: the prompts.
        settings: what is asked for, and in how many shards.
        cache: directory of the replies of an endpoint.
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
    settings: Synthesis
    cache: str
    copies: int
    max_failures: int
    recipe: Mapping[str, Any]
    key: str


def complete(
    job: SynthesisJob,
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
    raise_first_error(reports)
    totals = Counter(tallies)
    for report in reports:
        totals.update(report["counts"])
    account = Account.of(totals, reasons)
    account.check_stages(stages(account, len(job.settings.kinds)))
    letters = str(Path(job.output) / letter_files[0]["path"])
    account.check_result(totals[streams.MADE], "no example could be made", letters, job.max_failures)
    counts = account.counts()
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
    shared_id = {EXAMPLE: several} if several else {}
    return {
        **manifest["counts"],
        **shared_id,
        "shards": len(reports),
        "shards reused": sum(report["reused"] for report in reports),
    }


def stages(account: Account, num_kinds: int) -> list[tuple[str, int, int]]:
    """What came into each stage of the job, and what is accounted for; see `Account.check_stages`."""
    total = account.total

    def letters(found: Mapping[str, int], prefix: str) -> int:
        return sum(count for reason, count in found.items() if reason.startswith(prefix))

    everything = (account.failed, account.dropped)
    later = (streams.EXAMPLE, streams.QUESTION, "not chunked", DUPLICATE)
    unread = sum(sum(found.values()) - sum(letters(found, prefix) for prefix in later) for found in everything)
    return [
        ("reading", total(RECORDS), total(DOCUMENTS, BEYOND_LIMIT) + unread),
        ("deduplication", total(CHUNKS), total(UNIQUE, DUPLICATES)),
        ("reporting duplicates", total(DUPLICATES), letters(account.dropped, DUPLICATE)),
        ("planning", total(UNIQUE) * num_kinds, total(streams.STREAMS)),
        ("asking", total(streams.STREAMS), total(streams.MADE, streams.DROPPED, streams.FAILED)),
        ("reporting what was dropped", total(streams.DROPPED), letters(account.dropped, streams.EXAMPLE)),
        ("reporting what failed", total(streams.FAILED), letters(account.failed, streams.EXAMPLE)),
        (
            "choosing questions",
            total(streams.QUESTIONS),
            total(streams.KEPT, streams.QUESTIONS_DROPPED, streams.OF_OTHERS),
        ),
        ("reporting dropped questions", total(streams.QUESTIONS_DROPPED), letters(account.dropped, streams.QUESTION)),
    ]


def remove_work(output: Path, letter_files: Iterable[str]) -> None:
    """Remove what a finished artefact doesn't need, and dead letters of earlier attempts."""
    shutil.rmtree(output / work.WORK, ignore_errors=True)
    for file in output.glob(f"{NAME}*.jsonl"):
        if file.name not in letter_files:
            file.unlink(missing_ok=True)
