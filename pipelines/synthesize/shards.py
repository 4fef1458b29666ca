"""Shards of a synthesis: chunks of a range of ids, written before anything is asked; results, the report last."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clara.data.examples import write_part
from clara.data.records import Chunk
from clara.memory.shards import shard_name
from clara.storage.folders import atomic_write
from clara.storage.manifest import hash_of
from pipelines.corpus.dead_letter import DeadLetter, clean
from pipelines.corpus.dead_letters import SNIPPET_CHARACTERS
from pipelines.corpus.exact_duplicates import UniqueChunk
from pipelines.synthesize.dialogues import FAILED, Outcome

WORK = "work"
"""Folder of the shards in an output that is being made; it goes when the artefact is there."""

CHUNKS, PART, LETTERS, REPORT = "chunks.jsonl", "examples.parquet", "letters.jsonl", "report.json"
_ID_BITS = 63


@dataclass(frozen=True)
class Shard:
    """A shard that is to be made: its folder's name, and the hash of its chunks and of the job's settings."""

    name: str
    num_chunks: int
    key: str


def shard_of(row_id: int, num_shards: int) -> int:
    """Shards are ranges of ids, so that the order of all examples does not depend on their number."""
    return row_id * num_shards >> _ID_BITS


def default_num_shards(num_chunks: int) -> int:
    """Shards by the number of chunks: 64 each, what is lost of a local model's work by a kill; at most 4,096 shards."""
    return max(1, min(-(-num_chunks // 64), 4096))


def plan_shard(output: Path, index: int, num_shards: int, kept: Iterable[UniqueChunk], settings: str) -> Shard:
    """Write down a shard's chunks, by id."""
    ordered = sorted(kept, key=lambda k: k.chunk.row_id)
    lines = [json.dumps({"line": k.line, **asdict(k.chunk)}, ensure_ascii=False) for k in ordered]
    name = shard_name(index, num_shards)
    atomic_write(output / WORK / name / CHUNKS, "".join(line + "\n" for line in lines))
    return Shard(name, len(lines), hash_of([settings, lines]))


def read_chunks(output: Path, shard: Shard) -> list[tuple[Chunk, int]]:
    """The chunks of a planned shard, each with the line of its document."""
    rows = []
    with open(output / WORK / shard.name / CHUNKS, encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            number = row.pop("line")
            rows.append((Chunk(**row), number))
    return rows


def finished(output: Path, shard: Shard) -> dict[str, Any] | None:
    """The report of a shard that is there: of the same chunks and settings, and without a request that failed."""
    path = output / WORK / shard.name / REPORT
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if report["key"] != shard.key or report["counts"].get(FAILED):
        return None
    return {**report, "reused": True}


def write_result(
    output: Path, shard: Shard, chunks: Sequence[tuple[Chunk, int]], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Write what came of a shard's chunks, the report last, and return it.

    Args:
        output: the artefact.
        shard: as planned.
        chunks: its chunks and their lines.
        outcomes: of every kind, chunk by chunk.
    """
    folder, per_chunk = output / WORK / shard.name, len(outcomes) // max(1, len(chunks))
    write_part(folder / PART, [o.example for o in outcomes if o.example])
    counts: Counter[str] = Counter()
    letters = []
    for number, outcome in enumerate(outcomes):
        counts.update(outcome.counts)
        chunk, line = chunks[number // per_chunk]
        snippet = chunk.text[:SNIPPET_CHARACTERS]
        letters += [
            DeadLetter(chunk.source, line, n.reason, clean(n.detail), snippet, n.dropped) for n in outcome.notes
        ]
    atomic_write(folder / LETTERS, "".join(json.dumps(asdict(letter), ensure_ascii=False) + "\n" for letter in letters))
    report = {"name": shard.name, "key": shard.key, "counts": dict(counts)}
    atomic_write(folder / REPORT, json.dumps(report))
    return {**report, "reused": False}


def read_letters(output: Path, name: str) -> list[DeadLetter]:
    """The letters of a shard."""
    with open(output / WORK / name / LETTERS, encoding="utf-8") as stream:
        return [DeadLetter(**json.loads(line)) for line in stream]
