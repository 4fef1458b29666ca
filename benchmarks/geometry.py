"""Retrieval over a whole corpus by each geometry of the score, without any training, and by BM25.

python -m benchmarks.geometry --checkpoint DIR --memory DIR --questions DIR [--output DIR]

Recall@k (share of a question's positive documents among the first k rows' documents) and MRR of held-out questions,
with each question's excluded documents left out. The questions' mean of a centred score is that of training questions,
or of the other half of the held-out questions: a question is never part of the mean that is subtracted from it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import RESULTS, environment, save
from clara.config.model import Backbone, Score
from clara.config.roles import QUERY_REASONER
from clara.data.questions import Question, read_questions
from clara.errors import command_line
from clara.memory.fingerprint import of_memory
from clara.memory.mean import has_mean
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint
from clara.model.geometry import represent
from clara.model.model import ClaraModel
from clara.retrieval.bm25 import Bm25
from clara.retrieval.ranker import Queries
from clara.storage.artefact import Artefact

DEPTHS = (1, 5, 20)
_ROWS_AT_ONCE = 256
_AT_ONCE = 16


@torch.no_grad()
def query_vectors(model: ClaraModel, questions: Sequence[Question]) -> Tensor:
    """Query vectors `[B, M, D]` before any centring."""
    ids = [model.question_ids(q.question) for q in questions]
    parts = [model.encode(ids[i : i + _AT_ONCE], QUERY_REASONER).memory for i in range(0, len(ids), _AT_ONCE)]
    return torch.cat(parts).float().cpu()


def corpus_mean(store: MemoryStore) -> Tensor:
    """The mean `[M, D]` of a MEMORY, computed if an older program made it."""
    if has_mean(store.manifest):
        return torch.from_numpy(store.mean)
    total = sum(block.double().sum(dim=0) for _, block in blocks(store))
    return (torch.as_tensor(total) / len(store)).float()


def blocks(store: MemoryStore) -> Any:
    """Row ids and memory of all rows, block by block."""
    for begin in range(0, len(store), _ROWS_AT_ONCE):
        rows = store.row_ids[begin : begin + _ROWS_AT_ONCE]
        yield rows, torch.from_numpy(store.memory(rows))


def figures(ranked: Sequence[Sequence[int]], questions: Sequence[Question], store: MemoryStore) -> dict[str, float]:
    """Recall at each depth and MRR of ranked rows."""
    document = dict(zip(store.row_ids.tolist(), store.document_ids, strict=True))
    recalls, reciprocal = {k: 0.0 for k in DEPTHS}, 0.0
    for rows, question in zip(ranked, questions, strict=True):
        found = list(dict.fromkeys(document[row] for row in rows))
        positive = {*question.positive_ids}
        for k in DEPTHS:
            recalls[k] += len(positive & {*found[:k]}) / len(positive) / len(questions)
        first = next((position for position, name in enumerate(found, 1) if name in positive), 0)
        reciprocal += (1 / first if first else 0.0) / len(questions)
    return {**{f"recall_at_{k}": recall for k, recall in recalls.items()}, "mrr": reciprocal}


def by_vectors(
    query_BMD: Tensor, mean_BMD: Tensor | None, score: Score, store: MemoryStore, excluded: Sequence[Any]
) -> list[list[int]]:
    """All rows of each question, best first; `mean_BMD` is what is subtracted from each question."""
    query_BF = represent(query_BMD if mean_BMD is None else query_BMD - mean_BMD, score)
    mean = corpus_mean(store) if score.centred else None
    scores = torch.cat([query_BF @ represent(memory, score, mean).T for _, memory in blocks(store)], dim=1).numpy()
    ranked = []
    for line, left_out in zip(scores, excluded, strict=True):
        line[np.isin(store.row_ids, list(left_out))] = -np.inf
        order = np.argsort(-line, kind="stable")
        ranked.append(store.row_ids[order[np.isfinite(line[order])]].tolist())
    return ranked


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of each retriever."""
    memory = Artefact.open(options.memory, "MEMORY")
    store = MemoryStore.open(memory)
    dtype = of_memory(memory).dtype
    backbone = Backbone.model_validate({"path": options.backbone, "dtype": dtype})
    model = load_checkpoint(options.checkpoint, backbone).eval()
    held_out = [q for q in read_questions(options.questions, options.split) if q.positive_ids]
    train = read_questions(options.questions, "train")[: options.train_questions]
    query, trained = query_vectors(model, held_out), query_vectors(model, train).mean(dim=0)
    halves = [query[0::2].mean(dim=0), query[1::2].mean(dim=0)]
    own = torch.stack([halves[1 - position % 2] for position in range(len(query))])
    queries = Queries.of(held_out, store)
    flat, slots = Score(centred=True), Score(pooling="slot_mean", centred=True)
    forms = {
        "flattened": (None, Score()),
        "slot mean": (None, Score(pooling="slot_mean")),
        "flattened, centred": (trained, flat),
        "slot mean, centred": (trained, slots),
        "flattened, centred, mean of held-out questions": (own, flat),
        "slot mean, centred, mean of held-out questions": (own, slots),
    }
    found = {
        name: figures(by_vectors(query, mean, score, store, queries.excluded), held_out, store)
        for name, (mean, score) in forms.items()
    }
    ranked = Bm25.of_memory(store).rank(queries, len(store))
    cosine = torch.nn.functional.cosine_similarity(query.flatten(1), query.mean(dim=0).flatten()[None]).mean()
    print(f"{len(store)} rows, {len(held_out)} questions; their cosine to their mean: {float(cosine):.4f}")
    return {**found, "BM25": figures(ranked, held_out, store)}


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| retriever | Recall@1 | Recall@5 | Recall@20 | MRR |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |" for name, row in found.items()
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.geometry", description=__doc__)
    for name in ("checkpoint", "memory", "questions"):
        parser.add_argument(f"--{name}", required=True, metavar="DIR")
    parser.add_argument("--backbone", default="", metavar="DIR", help="folder of the LM (default: the checkpoint's)")
    parser.add_argument("--split", default="unseen", help="of the questions (default: unseen)")
    parser.add_argument("--train-questions", type=int, default=256, help="for the mean (default: 256)")
    parser.add_argument("--output", type=Path, default=RESULTS / "geometry", metavar="DIR", help="for the results")
    options = parser.parse_args(argv)
    found = measure(options)
    print(table(found))
    save(options.output, {"environment": environment("benchmarks.geometry"), "retrievers": found}, table(found))
    return 0


if __name__ == "__main__":
    command_line(main)
