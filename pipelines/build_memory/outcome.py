"""The settings of a memory job and its completion: check that no record is lost, then write the manifest."""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clara.data.fields import Fields
from clara.errors import InputError
from clara.memory.copies import COPIES
from clara.memory.fingerprint import Fingerprint
from clara.memory.shards import KIND, PLAN
from clara.memory.store import complete_memory
from clara.memory.update import complete_update
from clara.storage import paths
from clara.storage.folders import folder
from clara.storage.manifest import read_manifest
from clara.storage.paths import Name
from pipelines.corpus.copies import write_copies
from pipelines.corpus.counts import BEYOND_LIMIT, CHUNKS, DOCUMENTS, DUPLICATES, RECORDS, UNIQUE
from pipelines.corpus.dead_letters import NAME
from pipelines.corpus.document_ids import EXAMPLE
from pipelines.corpus.exact_duplicates import REASON as DUPLICATE
from pipelines.corpus.filters import Filters
from pipelines.corpus.near_duplicates import MinHashSettings
from pipelines.job.accounting import Account, raise_first_error
from pipelines.job.locks import Lease
from pipelines.job.progress import PROGRESS


@dataclass(frozen=True)
class MemoryJob:
    """The settings of a job, pickled and sent to the workers.

    Attributes:
        output: directory of the MEMORY, on a file system that every worker sees, or a URL.
        checkpoint: CHECKPOINT with the compressor.
        backbone: folder of the LM; empty: the one that the checkpoint holds or names.
        device: `cpu` or `cuda`.
        fingerprint: of the vectors; includes dtype, chunking and keys.
        fields: names of the records' fields.
        num_shards: number of shards; 0: chosen by the number of chunks.
        codec: one of `clara.memory.codec.CODECS`.
        batch_tokens: tokens of a batch, padding included.
        limit: only the first so many documents are used; 0: all.
        max_failures: the job fails if more records than this fail; below 0: no limit.
        recipe: what determines the result.
        filters: which documents stay.
        min_hash: decides which documents are near duplicates; None: near duplicates are kept.
        update: MEMORY of which this is a new version; empty: none.
        spill: folder to which the local job spills records; empty: all data passes through the runner.
        accelerator: Beam's resource hint for the stages that compress; empty: none.
        sees: a file in `output`, created before the job starts, that every worker must see; empty: not checked.
        lease: lease of an output URL; it must still be held when the MEMORY is completed.
    """

    output: str
    checkpoint: str
    backbone: str
    device: str
    fingerprint: Fingerprint
    fields: Fields
    num_shards: int
    codec: str
    batch_tokens: int
    limit: int = 0
    max_failures: int = -1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    min_hash: MinHashSettings | None = None
    update: str = ""
    spill: str = ""
    accelerator: str = ""
    sees: str = ""
    lease: Lease | None = None


def complete(
    job: MemoryJob,
    reports: Sequence[Mapping[str, Any]],
    letter_files: Sequence[Mapping[str, Any]],
    reasons: Mapping[tuple[bool, str], int],
    tallies: Mapping[str, int],
    several: str,
    num_shards: int,
    codebook: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete the MEMORY and return its counts.

    Args:
        job: the job.
        reports: of all shards.
        letter_files: manifest entries of the dead letters.
        reasons: number of dead letters by (dropped, reason).
        tallies: counts by name.
        several: example of a document id shared by different texts; empty: there is none.
        num_shards: of the MEMORY.
        codebook: manifest entry of a codebook made for it.

    Raises:
        InputError: a shard could not be written, there is no row, or more records failed than allowed.
    """
    raise_first_error(reports)
    account = Account.of(tallies, reasons)
    rows = sum(report["rows"] for report in reports)
    account.check_stages(stages(account, rows))
    # Duplicates are chunks and are among the tallies; `dropped` counts records only.
    records = replace(account, dropped={reason: n for reason, n in account.dropped.items() if reason != DUPLICATE})
    letters = paths.join(job.output, letter_files[0]["path"])
    records.check_result(rows, "--input: no document could be used", letters, job.max_failures)
    counts = records.counts(rows=rows)
    extra_files = [*letter_files, *write_copies(job.output, letter_files, reasons)]
    if job.lease:
        job.lease.check()
    if job.update:
        counts |= {
            f"rows {kind}": sum(report[kind] for report in reports) for kind in ("kept", "moved", "compressed", "gone")
        }
        complete_update(job.update, job.output, reports, recipe=job.recipe, counts=counts, extra_files=extra_files)
    else:
        complete_memory(
            job.output,
            reports,
            fingerprint=job.fingerprint,
            codec=job.codec,
            num_shards=num_shards,
            recipe=job.recipe,
            counts=counts,
            extra_files=[*extra_files, *([codebook] if codebook else [])],
        )
    shared_id = {EXAMPLE: several} if several else {}
    return {**counts, **shared_id, "shards": len(reports), "shards reused": sum(report["reused"] for report in reports)}


def check_sees(job: MemoryJob) -> None:
    """Check that this machine shares the output directory with the machine that submitted the job.

    Raises:
        InputError: this machine does not see the output directory.
    """
    if job.sees and not Path(job.sees).is_file():
        raise InputError(
            f"--output {job.output}: {socket.gethostname()} does not see the file {job.sees} of the machine that "
            "submitted the job; give a directory that all of them mount at this path, or a URL"
        )


def stages(account: Account, rows: int) -> list[tuple[str, int, int]]:
    """(Stage, records that came in, records accounted for) of each stage; see `Account.check_stages`."""
    failed, dropped, total = account.failed, account.dropped, account.total
    unchunked, uncompressed = failed.get("not chunked", 0), failed.get("not compressed", 0)
    unread = sum(failed.values()) - unchunked - uncompressed
    duplicates = dropped.get(DUPLICATE, 0)
    unused = sum(dropped.values()) - duplicates
    return [
        ("reading", total(RECORDS), total(DOCUMENTS, BEYOND_LIMIT) + unread + unused),
        ("deduplication", total(CHUNKS), total(UNIQUE, DUPLICATES)),
        ("reporting duplicates", total(DUPLICATES), duplicates),
        ("compression", total(UNIQUE), rows + uncompressed),
    ]


_LEFTOVER = re.compile(rf"{NAME}[^/]*\.jsonl$|{re.escape(COPIES)}$|[^/]*shard-|{re.escape(PROGRESS)}/")


def remove_leftovers(output: Name) -> None:
    """Remove leftovers of interrupted attempts: shards and dead letters that the manifest does not list."""
    files = {entry["path"] for entry in read_manifest(output, KIND)["files"]}
    wanted = files | {f"{file.rpartition('/')[0]}/{PLAN}" for file in files}
    place = folder(output)
    place.remove(file for file in place.files() if file not in wanted and _LEFTOVER.match(file))
