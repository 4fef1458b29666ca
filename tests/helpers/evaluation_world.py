"""A small world for evaluation tests: MEMORY of the tiny corpus and questions about its towns."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from clara.config.model import Backbone
from clara.data.questions import Question, read_questions, write_questions
from clara.data.records import Chunk, chunk_id, row_id
from clara.index.build import build_index
from clara.memory.compress import Encoding, write_memory_shard
from clara.memory.fingerprint import EncodingSettings, of_checkpoint
from clara.memory.shards import shard_name
from clara.memory.store import complete_memory
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.storage.manifest import read_manifest

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
            chunks.append(
                Chunk(row_id(name), name, row["id"], row["title"], text, begin, end, len(text), False, "corpus.jsonl")
            )
    return chunks


def write_memory(directory: Path, checkpoint: Path, corpus: Path) -> Path:
    """MEMORY of a corpus by a checkpoint."""
    fingerprint = of_checkpoint(checkpoint, EncodingSettings(96, 0, key_size=32, key_seed=0, dtype="float32"))
    model = load_checkpoint(checkpoint, Backbone(dtype="float32"))
    chunks = chunks_of(corpus)
    reports = []
    for index in range(NUM_SHARDS):
        own = [c for c in chunks if c.row_id % NUM_SHARDS == index]
        name = shard_name(index, NUM_SHARDS)
        encoding = Encoding(fingerprint, "float16", 1024)
        reports.append(write_memory_shard(lambda: model, own, directory, name, encoding))
    complete_memory(
        directory,
        reports,
        fingerprint=fingerprint,
        codec="float16",
        num_shards=NUM_SHARDS,
        recipe={"made_by": "tests"},
        counts={},
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
        questions.append(
            Question(f"q{number}", text, (answer, f"the {answer}"), (row["id"],), pool, (excluded,), split)
        )
    write_questions(directory, questions, recipe={"made_by": "tests"})
    return directory


def train_generator(checkpoint: Path, questions: Path, output: Path, *, steps: int = 25) -> Path:
    """A CHECKPOINT whose generator has learned the form of the answers; the compressor is unchanged: MEMORY fits."""
    model = load_checkpoint(checkpoint, Backbone(dtype="float32"))
    optimiser = torch.optim.Adam(model.train_only(["generator"]), lr=2e-2)
    asked = read_questions(questions)
    prompts = [model.prompts.question(q.question, q.answers[0]) for q in asked]
    nothing = [torch.zeros(0, model.num_memory_tokens, model.hidden_size)] * len(asked)
    for _ in range(steps):
        optimiser.zero_grad()
        model.answer_losses(prompts, nothing).nll.mean().backward()
        optimiser.step()
    save_checkpoint(model, output, stage="instruct", recipe={"made_by": "tests", "steps": steps})
    return output


@dataclass(frozen=True)
class World:
    """Directories that evaluation reads; `trained` has the compressor of `checkpoint`: `memory` fits both."""

    checkpoint: Path
    trained: Path
    memory: Path
    index: Path
    questions: Path


def make(folder: Path, checkpoint: Path, corpus: Path) -> World:
    """Everything, in a folder."""
    memory = write_memory(folder / "memory", checkpoint, corpus)
    build_index(memory, folder / "index", "Flat")
    questions = write_town_questions(folder / "questions", corpus)
    trained = train_generator(checkpoint, questions, folder / "trained")
    return World(checkpoint, trained, memory, folder / "index", questions)
