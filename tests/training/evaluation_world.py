"""A small world for evaluation's tests: MEMORY of the tiny corpus by the tiny checkpoint, and questions about its towns."""

import json
from pathlib import Path

from clara.artefact import read_manifest
from clara.checkpoint import load_checkpoint
from clara.config import Backbone
from clara.encode import write_memory_shard
from clara.fingerprint import of_checkpoint
from clara.memory import complete_memory, shard_name
from clara.questions import Question, write_questions
from clara.records import Chunk, chunk_id, input_text, row_id

NUM_SHARDS = 2


def chunks_of(corpus: Path) -> list[Chunk]:
    """Two chunks of every document: its first sentence, and the rest."""
    chunks = []
    for line in corpus.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        middle = row["text"].index(". ") + 1
        for begin, end in ((0, middle), (middle + 1, len(row["text"]))):
            text = row["text"][begin:end]
            name = chunk_id(row["title"], text)
            chunks.append(Chunk(row_id(name), name, row["id"], row["title"], text, begin, end, len(text), False, "corpus.jsonl"))
    return chunks


def write_memory(directory: Path, checkpoint: Path, corpus: Path) -> Path:
    """MEMORY of a corpus by a checkpoint."""
    fingerprint = of_checkpoint(checkpoint, backbone="", dtype="float32", max_tokens=96, overlap_tokens=0, key_size=32, key_seed=0)
    model = load_checkpoint(checkpoint, Backbone(dtype="float32"))
    chunks = chunks_of(corpus)
    reports = []
    for index in range(NUM_SHARDS):
        own = [c for c in chunks if c.row_id % NUM_SHARDS == index]
        name = shard_name(index, NUM_SHARDS)
        reports.append(write_memory_shard(lambda: model, own, directory, name, fingerprint=fingerprint, codec="float16", batch_tokens=1024))
    complete_memory(
        directory, reports, fingerprint=fingerprint, codec="float16", num_shards=NUM_SHARDS, recipe={"made_by": "tests"}, counts={}
    )
    assert read_manifest(directory)["fingerprint"] == fingerprint.hash
    return directory


def write_town_questions(directory: Path, corpus: Path, *, per_split: int = 6) -> Path:
    """Questions about towns: `unseen` with a fixed pool of eight, `seen` without one; each keeps one document out."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    names = [row["id"] for row in rows]
    questions = []
    for number in range(2 * per_split):
        row = rows[3 * number]
        split = "unseen" if number < per_split else "seen"
        pool = tuple(names[(3 * number + 5 * i) % len(names)] for i in range(8)) if split == "unseen" else ()
        excluded = names[(3 * number + 1) % len(names)]
        text = f"What does the market of {row['title']} sell?"
        answer = row["text"].rsplit(" ", 1)[1].rstrip(".")
        questions.append(Question(f"q{number}", text, (answer, f"the {answer}"), (row["id"],), pool, (excluded,), split))
    write_questions(directory, questions, recipe={"made_by": "tests"})
    return directory


def document_input(chunk: Chunk) -> str:
    """What the compressor read of a chunk."""
    return input_text(chunk.title, chunk.text)
