"""What a corpus job knows of itself, and how it ends: nothing lost, dead letters written, and the manifest last of all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clara.artefact import MANIFEST, atomic_write, file_entry
from clara.errors import InputError
from clara.fingerprint import Fingerprint
from clara.memory import complete_memory
from clara.update import complete_update
from pipelines.sources import DeadLetter, Fields, clean

DEAD_LETTERS = "dead_letters.jsonl"
OUTCOME = ".outcome.json"
SNIPPET_CHARACTERS = 200

# What is counted; the invariants tie them together.
RECORDS, DOCUMENTS, BEYOND_LIMIT, CHUNKS, TRUNCATED, SPLIT = (
    "records read",
    "documents",
    "documents beyond limit",
    "chunks",
    "chunks truncated",
    "documents split",
)
UNIQUE, DUPLICATES = "unique chunks", "duplicate chunks dropped"


@dataclass(frozen=True)
class Job:
    """All that the workers need to know; it travels with the pipeline.

    Attributes:
        output: directory of the MEMORY, on a file system that every worker sees.
        checkpoint: CHECKPOINT with the compressor.
        backbone: folder of the LM; empty: the one that the checkpoint holds or names.
        device: `cpu` or `cuda`.
        fingerprint: of the vectors; says dtype, chunking and keys too.
        fields: names of the records' fields.
        num_shards: 0: by the number of chunks.
        codec: one of `clara.codec.CODECS`.
        batch_tokens: tokens of a batch, padding included.
        limit: documents at most, the first ones; 0: all.
        max_failures: more dead letters than this fail the job; below 0: no bound.
        recipe: what determines the result.
        update: MEMORY of which this is a new version; empty: none.
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
    update: str = ""


def complete(
    job: Job,
    reports: Sequence[dict[str, Any]],
    failed: Sequence[DeadLetter],
    tallies: Mapping[str, int],
    num_shards: int,
    codebook: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete the MEMORY and return its counts.

    Raises:
        InputError: a shard could not be written, there is no row, or more dead letters than allowed.
    """
    errors = sorted(report["error"] for report in reports if report.get("error"))
    if errors:
        raise InputError(errors[0] + (f" (and {len(errors) - 1} more shards failed)" if len(errors) > 1 else ""))
    in_shards = [
        DeadLetter(f["source"], f["line"], "not compressed", clean(f["reason"]), f["text"][:SNIPPET_CHARACTERS])
        for report in reports
        for f in report["failures"]
    ]
    letters = sorted([*failed, *in_shards], key=lambda letter: (letter.source, letter.line, letter.reason, letter.detail))
    reasons: dict[str, int] = {}
    for letter in letters:
        reasons[letter.reason] = reasons.get(letter.reason, 0) + 1
    rows = sum(report["rows"] for report in reports)
    lines = "".join(json.dumps(asdict(letter), ensure_ascii=False) + "\n" for letter in letters)
    atomic_write(Path(job.output) / DEAD_LETTERS, lines)
    check_nothing_lost(tallies, rows, reasons)
    where = f"{Path(job.output) / DEAD_LETTERS} names each"
    if not rows:
        raise InputError(f"--input: no document could be used, failures by reason: {reasons or 'none'}; {where}")
    if 0 <= job.max_failures < len(letters):
        raise InputError(f"{len(letters)} dead letters, --max-failures allows {job.max_failures}; by reason: {reasons}; {where}")
    counts = {
        **dict(sorted(tallies.items())),
        "rows": rows,
        "dead letters": len(letters),
        "dead letters by reason": dict(sorted(reasons.items())),
    }
    extra_files = [file_entry(job.output, DEAD_LETTERS, len(letters))]
    if job.update:
        counts |= {f"rows {kind}": sum(report[kind] for report in reports) for kind in ("kept", "moved", "compressed", "gone")}
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
    return {**counts, "shards": len(reports), "shards reused": sum(report["reused"] for report in reports)}


def check_nothing_lost(tallies: Mapping[str, int], rows: int, reasons: Mapping[str, int]) -> None:
    """Records in = out + dropped + failed, at each stage; a difference is a bug of the job, and no MEMORY is completed then."""
    unchunked, uncompressed = reasons.get("not chunked", 0), reasons.get("not compressed", 0)
    unread = sum(reasons.values()) - unchunked - uncompressed
    for stage, came_in, went_out in (
        ("reading", tallies.get(RECORDS, 0), tallies.get(DOCUMENTS, 0) + tallies.get(BEYOND_LIMIT, 0) + unread),
        ("deduplication", tallies.get(CHUNKS, 0), tallies.get(UNIQUE, 0) + tallies.get(DUPLICATES, 0)),
        ("compression", tallies.get(UNIQUE, 0), rows + uncompressed),
    ):
        if came_in != went_out:
            raise RuntimeError(
                f"{stage} lost records: {came_in} came in, {went_out} are accounted for; tallies {dict(tallies)}, failures {dict(reasons)}"
            )


def read_outcome(output: Path) -> dict[str, Any]:
    """Counts of a job that has run, and remove the note.

    Raises:
        InputError: the job says that it failed.
        RuntimeError: it left no word.
    """
    path = output / OUTCOME
    if not path.is_file():
        raise RuntimeError(f"{output}: the pipeline ended without an outcome and without {MANIFEST}; see the runner's log")
    outcome = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    if "error" in outcome:
        raise InputError(outcome["error"])
    return dict(outcome["counts"])
