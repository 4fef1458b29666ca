"""A small world for joint training's tests: MEMORY, INDEX and QUESTIONS of the tiny corpus by the tiny checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from clara.config.model import Backbone
from clara.data.questions import Question, write_questions
from clara.data.records import Chunk, chunk_id, row_id
from clara.errors import InputError
from clara.index.build import build_index
from clara.memory.compress import Encoding, write_memory_shard
from clara.memory.fingerprint import EncodingSettings, of_checkpoint
from clara.memory.shards import shard_name
from clara.memory.store import complete_memory
from clara.model.checkpoint import load_checkpoint
from clara.storage.manifest import read_manifest
from training.loop.run_state import run_states
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, run_job

NUM_SHARDS = 2


class Inline:
    """A worker that encodes at once, in this process: a separate process takes seconds to import torch."""

    def start(self, job: RefreshJob, log: Path) -> "Inline":
        self._result: RefreshResult | RefreshError
        try:
            self._result = run_job(job)
        except (InputError, OSError, RuntimeError) as error:
            self._result = RefreshError(str(error))
        return self

    def result(self, timeout_seconds: float) -> RefreshResult | None:
        if isinstance(self._result, RefreshError):
            raise self._result
        return self._result

    def stop(self) -> None:
        raise AssertionError("nothing runs")

    def close(self) -> None:
        """Nothing is left."""


@dataclass(frozen=True)
class World:
    """Directories of what a joint run reads."""

    checkpoint: Path
    memory: Path
    index: Path
    questions: Path

    def sets(self, output: Path, **values: object) -> list[str]:
        """Arguments of the command line for a short run; names in `values` have `__` for dots."""
        given: dict[str, object] = {
            "checkpoint": self.checkpoint,
            "memory": self.memory,
            "index": self.index,
            "questions": self.questions,
            "output": output,
            "backbone.dtype": "float32",
            "retrieval.factory": "Flat",
            "launch.threads": 1,
            "joint.steps": 6,
            "joint.questions_per_step": 4,
            "joint.micro_batch": 2,
            "joint.num_candidates": 8,
            "joint.num_selected": 2,
            "joint.from_index": 4,
            "joint.from_bm25": 2,
            "joint.optimiser.learning_rate": 1e-3,
            "joint.checkpoint_every": 2,
        }
        given |= {name.replace("__", "."): value for name, value in values.items()}
        return [part for name, value in given.items() for part in ("--set", f"{name}={value}")]

    def refresh_job(self, folder: Path, checkpoint: Path | None = None) -> RefreshJob:
        """Encodes all rows of MEMORY into a folder, with another checkpoint if one is given."""
        return RefreshJob(
            checkpoint=str(checkpoint or self.checkpoint),
            backbone="",
            parent=str(self.memory),
            memory=str(folder / "memory"),
            index=str(folder / "index"),
            factory="Flat",
            first_level=20,
            batch_tokens=1024,
            threads=1,
        )


def _chunk(row: dict[str, str]) -> Chunk:
    name = chunk_id(row["title"], row["text"])
    return Chunk(
        row_id(name), name, row["id"], row["title"], row["text"], 0, len(row["text"]), 0, False, "corpus.jsonl"
    )


def _questions(rows: list[dict[str, str]]) -> list[Question]:
    found = []
    for number, row in enumerate(rows):
        found.append(
            Question(
                question_id=f"q-{number}",
                question=f"Who is the mayor of {row['title']}?",
                answers=(row["text"].split("called ")[1].split(".")[0],),
                positive_ids=(row["id"],),
                candidate_ids=tuple(r["id"] for r in rows[max(0, number - 4) : number + 4]),
                exclude_ids=(rows[(number + 1) % len(rows)]["id"],),
                split="train" if number % 4 else "unseen",
            )
        )
    return found


def make(folder: Path, checkpoint: Path, corpus: Path, *, dtype: str = "float32") -> World:
    """Everything, in a folder; MEMORY made in this type of the LM."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    chunks = [_chunk(row) for row in rows]
    world = World(checkpoint, folder / "memory-v0", folder / "index-v0", folder / "questions")
    fingerprint = of_checkpoint(checkpoint, EncodingSettings(96, 0, key_size=32, key_seed=0, dtype=dtype))
    model = load_checkpoint(checkpoint, Backbone.model_validate({"dtype": dtype}))
    reports = [
        write_memory_shard(
            lambda: model,
            [c for c in chunks if c.row_id % NUM_SHARDS == shard],
            world.memory,
            shard_name(shard, NUM_SHARDS),
            Encoding(fingerprint, "float16", 1024),
        )
        for shard in range(NUM_SHARDS)
    ]
    complete_memory(
        world.memory,
        reports,
        fingerprint=fingerprint,
        codec="float16",
        num_shards=NUM_SHARDS,
        recipe={"made_by": "tests"},
        counts={},
    )
    build_index(world.memory, world.index, "Flat")
    write_questions(world.questions, _questions(rows), recipe={"made_by": "tests"})
    return world


def reached(run: Path, step: int) -> bool:
    """True if there is a run state of this step or a later one: older ones are deleted, a busy machine checks late."""
    return any(int(state.parent.name.split("-")[1]) >= step for state in run_states(run))


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of the trained adapters of a run, by role and name."""
    checkpoint = output / "checkpoint"
    roles = read_manifest(checkpoint)["roles"]
    return {
        f"{r}.{n}": t
        for r, folder in roles.items()
        for n, t in load_file(checkpoint / folder / "adapter_model.safetensors").items()
    }
