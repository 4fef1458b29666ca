"""The table of one corpus."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.whole_corpus.measure import Scores, difference, scores_of
from benchmarks.whole_corpus.steps import FEATURES, KINDS, Corpus
from clara.config.model import FeatureName
from clara.config.tree import Retrieval
from clara.data.questions import read_questions
from clara.model.artefact import Checkpoint
from clara.retrieval.retriever import Retriever
from training.score_fit.run import open_rankers

NAMES: tuple[FeatureName, ...] = ("memory", "bm25", "dense")
_COMPARED = (
    ("fitted: memory, bm25, dense", "fitted: bm25, dense"),
    ("fitted: memory, bm25, dense", "unfitted: memory, bm25, dense"),
    ("fitted: memory, bm25", "bm25"),
    ("unfitted: memory, bm25", "bm25"),
)


def fixed_sums(scores: Scores) -> dict[str, list[float]]:
    """Weights of each source alone and of fixed sums, in the order of `NAMES`."""
    spread = float(scores.features[..., 1].std())
    alone: dict[str, list[float]] = {name: [float(name == other) for other in NAMES] for name in NAMES}
    return alone | {
        "bm25 / its deviation + 20 dense": [0.0, 1 / spread, 20.0],
        "0.5 memory + 0.25 bm25 / its deviation": [0.5, 0.25 / spread, 0.0],
    }


def systems(corpus: Corpus, scores: Scores) -> dict[str, list[float]]:
    """Weights of every row of the table, in the order of `NAMES`."""
    found = fixed_sums(scores)
    for kind in KINDS:
        for features in FEATURES:
            path = corpus.fused_path(features, fitted=kind == "fitted")
            weights: Mapping[FeatureName, float] = Checkpoint.open(path).settings.fusion.weights
            found[f"{kind}: {', '.join(features)}"] = [weights.get(of, 0.0) for of in NAMES]
    return found


def measured(corpus: Corpus, dense_model: str) -> dict[str, Any]:
    """Weights, measures and differences of every QUESTIONS of a corpus."""
    retriever = Retriever.open(
        corpus.path("start"),
        corpus.path("memory"),
        corpus.path("index"),
        backbone=corpus.base,
        retrieval=Retrieval(dense_model=dense_model),
    )
    rankers = open_rankers(retriever, NAMES)
    found = {}
    for name, (path, split) in corpus.asked.items():
        questions = [q for q in read_questions(path, split or None) if q.positive_ids]
        scores = scores_of(retriever, rankers, questions)
        weights = systems(corpus, scores)
        of = {system: scores.measures(w) for system, w in weights.items()}
        found[name] = {
            "questions": len(questions),
            "targets": len(set(scores.targets.tolist())),
            "rows": len(scores.documents),
            "systems": {
                system: {"weights": weights[system]} | {m: float(np.mean(v)) for m, v in values.items()}
                for system, values in of.items()
            },
            "differences": {
                f"{a} − {b}": {m: difference(of[a][m], of[b][m], scores.targets) for m in ("recall@1", "recall@5")}
                for a, b in _COMPARED
                if a in of and b in of
            },
        }
    return found


def table(corpus: str, found: Mapping[str, Any]) -> str:
    """The measures of a corpus in Markdown."""
    lines: list[str] = []
    for name, of in found.items():
        lines += [
            f"## {corpus}: {name}",
            "",
            f"{of['questions']} questions, {of['targets']} targets, {of['rows']} rows.",
        ]
        lines += [
            "",
            "| score | memory · bm25 · dense | Recall@1 | Recall@5 | Recall@20 | MRR |",
            "|---|---|---|---|---|---|",
        ]
        for system, row in of["systems"].items():
            weights = " · ".join(f"{w:.3g}" for w in row["weights"])
            values: Sequence[float] = [row[m] for m in ("recall@1", "recall@5", "recall@20", "mrr")]
            lines.append(f"| {system} | {weights} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
        lines += ["", "| difference | Recall@1 | Recall@5 |", "|---|---|---|"]
        for pair, by in of["differences"].items():
            cells = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in by.values()]
            lines.append(f"| {pair} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
