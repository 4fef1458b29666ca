"""Part `world` of `benchmarks.gpu`: the small world from nothing to its figure, in one process on one device."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import Save
from benchmarks.joint_step import write_chunks
from clara.config.load import load
from clara.config.tree import Config
from clara.data.questions import read_questions
from clara.data.records import Chunk, chunk_id, row_id
from clara.model.checkpoint import load_checkpoint
from clara.retrieval.retriever import Retriever
from infra.world import SPLITS, World
from pipelines.world.command import main as make_world
from training import joint, pretrain
from training.evaluation.measures import retrieval_measures
from training.evaluation.pairs import own_rankings
from training.evaluation.retrievers import Corpus
from training.evaluation.systems import Settings

FIGURE = 0.9
"""Recall@1 in pools of 20 on names that training never saw; BM25 has at most 0.1."""
_TINY = ("pretrain.steps=2", "instruct.steps=2", "joint.steps=2", "world.train=40", "world.held_out=20")


def measure(name: str, device: str, tiny: bool, save: Save) -> dict[str, Any]:
    """See `benchmarks.gpu`."""
    gpu = [f"launch.gpu={str(device != 'cpu').lower()}"]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), 0, (), [*(_TINY if tiny else ())])
        commands = world.preparation()
        found: dict[str, Any] = {"seconds": {}, "figure": FIGURE}

        def run(step: str, work: Callable[[], object]) -> None:
            began = time.perf_counter()
            work()
            found["seconds"][step] = time.perf_counter() - began
            save(found)

        run("world", lambda: make_world(_arguments(commands["world"])))
        for stage in ("pretrain", "instruct"):
            run(stage, lambda s=stage: pretrain.main([*_arguments(commands[s]), *_set(gpu)]))  # type: ignore[misc]
        run("memory", lambda: write_memory(world, load(world.config, world.sets), device))
        run("joint", lambda: joint.main([*_arguments(world.joint("after")), *_set(gpu)]))
        found["recall_at_1_before"] = recall(world, "instruct/checkpoint", device)
        found["recall_at_1"] = recall(world, "after/checkpoint", device)
    found["reached"] = found["recall_at_1"][SPLITS[0]] >= FIGURE
    return found


def _arguments(command: list[str]) -> list[str]:
    """Those of `python -m MODULE …` or `python FILE …`."""
    return command[3:] if command[1] == "-m" else command[2:]


def _set(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def write_memory(world: World, config: Config, device: str) -> None:
    """MEMORY of the world's documents, each one chunk."""
    rows = [json.loads(line) for line in Path(world.path("world/corpus.jsonl")).read_text("utf-8").splitlines()]
    chunks = []
    for row in rows:
        name = chunk_id(row["title"], row["text"])
        chunks.append(Chunk(row_id(name), name, row["id"], row["title"], row["text"], 0, len(row["text"]), 0, False))
    unique = list({chunk.row_id: chunk for chunk in chunks}.values())
    checkpoint = Path(world.path("instruct/checkpoint"))
    model = load_checkpoint(checkpoint, config.backbone, device=device)
    write_chunks(model, config, unique, checkpoint, Path(world.path("memory")))


def recall(world: World, checkpoint: str, device: str) -> dict[str, float]:
    """Recall@1 in the questions' pools by held-out split, of a CHECKPOINT of the world."""
    retriever = Retriever.open(world.path(checkpoint), world.path("memory"), device=device)
    corpus, found = Corpus(retriever.store), {}
    for split in SPLITS:
        asked = [q for q in read_questions(world.path("world/questions")) if q.split == split]
        rankings = own_rankings(checkpoint, retriever, asked, Settings(num_selected=1, retrieval_only=True))
        documents = [corpus.ranked_documents(r.pool) for r in rankings]
        rows = retrieval_measures("pool", documents, [q.positive_ids for q in asked])
        found[split] = sum(row["pool.recall@1"] for row in rows) / len(rows)
    return found
