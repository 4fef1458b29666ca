"""What a run of the evidence came to: one table for each question that it answers, paired tests, targets, pictures.

python -m infra.evidence.report --run DIR --output DIR

Reads what is there: a run that has not come to its end gives the tables of what it has done.
"""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clara.config.flags import program
from clara.errors import command_line
from clara.memory.store import MemoryStore
from clara.metrics import PairedTest
from clara.storage import artefact
from clara.storage.artefact import atomic_write
from infra.evidence.data import SCP, SPLITS
from infra.evidence.pictures import learning, reading_curve, recall_bars
from infra.evidence.rows import (
    BASELINES,
    CHALLENGERS,
    F1,
    LIKELIHOOD,
    OPPONENTS,
    POOLS,
    RECALL,
    TOGETHER,
    chosen,
    compare,
    read_rows,
    systems_of,
    table,
)
from training.evaluation.measures import Figure, Row, figures
from training.evaluation.tables import Table, as_markdown, shown

_GIVEN = ("right", "wrong", "none")


@dataclass(frozen=True)
class Target:
    """What was aimed at, and what came out."""

    aim: str
    test: PairedTest | None
    least: float
    significant: bool = False

    def told(self) -> str:
        """In words, with by how much it was missed."""
        if self.test is None:
            return f"{self.aim}: not measured"
        reached = self.test.difference >= self.least and (not self.significant or self.test.low > 0)
        outcome = "reached" if reached else f"missed by {max(self.least - self.test.difference, 0.0):.3f}"
        if not reached and self.test.difference >= self.least:
            outcome = "not shown: the interval holds 0"
        return f"{self.aim}: {self.test.difference:+.3f} [{self.test.low:+.3f}, {self.test.high:+.3f}], p = {self.test.p_value:.4f}, n = {self.test.num_questions}: {outcome}"


def answer_table(rows: Sequence[Row]) -> Table:
    """What the answers come to, by what was read: all published pools together; F1 and exact match without yes and no."""
    lines = []
    readers = [(name, name, "pool") for name in systems_of(rows)]
    readers += [(f"memory of {name} documents" if name != "none" else "no document", "start", name) for name in _GIVEN]
    for base in BASELINES:
        readers.append((f"raw passages that {base} found (standard RAG)", f"text/{base}", "pool"))
    readers += [
        (f"raw {name} passages" if name != "none" else "plain LM, no document", "text/bm25", name) for name in _GIVEN
    ]
    for title, system, condition in readers:
        found = figures(chosen(rows, system, TOGETHER))
        names = (f"{condition}.log_likelihood", f"open.{condition}_f1", f"open.{condition}_exact_match")
        if names[0] in found:
            lines.append([title, *(shown(found[name], interval=True) if name in found else "" for name in names)])
    return ["read", "log-likelihood of the answer [nats]", "F1", "exact match"], lines


def tests_table(rows: Sequence[Row]) -> tuple[Table, dict[str, dict[str, Any]]]:
    """Paired differences of what joint training made and everything else."""
    lines, kept = [], {}
    there = systems_of(rows)
    for challenger in [c for c in CHALLENGERS if c in there]:
        for base in [o for o in OPPONENTS if o in there]:
            for split in (TOGETHER, *POOLS):
                for measure in (RECALL, LIKELIHOOD, F1):
                    if (test := compare(rows, challenger, base, split, measure)) is not None:
                        kept[f"{challenger} - {base}, {split}, {measure}"] = asdict(test)
                        if split == TOGETHER:
                            lines.append(
                                [
                                    f"{challenger} - {base}",
                                    measure,
                                    f"{test.difference:+.3f}",
                                    f"[{test.low:+.3f}, {test.high:+.3f}]",
                                    f"{test.p_value:.4f}",
                                    str(test.num_questions),
                                ]
                            )
    return (["pair", "measure", "difference", "95 % interval", "p", "n"], lines), kept


ALIGNMENTS = {
    "generator": "alignment.generator",
    "generator, solo": "alignment.generator_solo",
    "plain LM on text": "alignment.text",
    "plain LM on text, solo": "alignment.text_solo",
}
"""Who told a document's utility, and the measure. The plain LM never saw the training."""


def alignment_targets(rows: Sequence[Row]) -> list[str]:
    """Whether joint training raises it: paired by question."""
    tests = {title: compare(rows, "joint", "start", TOGETHER, name) for title, name in ALIGNMENTS.items()}
    return [
        Target(f"joint raises utility alignment, {t}, all pools", test, 0.0, significant=True).told()
        for t, test in tests.items()
    ]


def alignment_table(rows: Sequence[Row]) -> Table:
    """Utility alignment before and after, all published pools together; words: BM25's score in the retriever's place."""
    names = ALIGNMENTS | {
        "words, generator": "alignment.generator_lexical",
        "words, plain LM": "alignment.text_lexical",
    }
    return table(
        rows,
        [s for s in systems_of(rows) if s not in BASELINES],
        {title: (TOGETHER, name) for title, name in names.items()},
    )


@dataclass(frozen=True)
class Reading:
    """Reading of held-out `scp` documents at one number of memory tokens."""

    memory_tokens: int
    ratio: float
    figures: Mapping[str, Figure]


def reading_of(memory: Path, evaluation: Path) -> Reading:
    """What one evaluation says of reading, and the compression: mean tokens of a held-out document by memory tokens."""
    store = MemoryStore.open(memory)
    rows = [row for row in read_rows(evaluation) if row["split"] == SCP and "/" not in row["system"]]
    first = [row for row in rows if row["system"] == rows[0]["system"]]
    needed = [row for q in first for d in q["positive_ids"] for row in store.rows_of(d)]
    tokens = [chunk.num_tokens for chunk in store.records(needed)]
    return Reading(store.num_memory_tokens, sum(tokens) / len(tokens) / store.num_memory_tokens, figures(first))


def readings(run: Path) -> list[Reading]:
    """All numbers of memory tokens that were measured, most first."""
    found = (
        [reading_of(run / "memory", run / "evaluation")] if (run / "evaluation" / artefact.MANIFEST).is_file() else []
    )
    for folder in run.glob("slots-*"):
        if (folder / "evaluation" / artefact.MANIFEST).is_file():
            found.append(reading_of(folder / "memory", folder / "evaluation"))
    return sorted(found, key=lambda r: -r.memory_tokens)


def reading_table(found: Sequence[Reading]) -> Table:
    """A line for each compression."""
    names = ("right.log_likelihood", "wrong.log_likelihood", "gap.right_minus_wrong", "open.right_f1", "open.wrong_f1")
    lines = [
        [
            str(r.memory_tokens),
            f"{r.ratio:.1f}",
            *(shown(r.figures[n], interval=True) if n in r.figures else "" for n in names),
        ]
        for r in found
    ]
    return [
        "memory tokens",
        "compression",
        "right [nats]",
        "wrong [nats]",
        "right - wrong",
        "F1, right",
        "F1, wrong",
    ], lines


def targets(rows: Sequence[Row], read: Sequence[Reading]) -> list[str]:
    """What the evidence aims at, and what came out."""
    told = []
    for r in read:
        if gap := r.figures.get("gap.right_minus_wrong"):
            outcome = "reached" if gap.value >= 1 else f"missed by {1 - gap.value:.3f}"
            told.append(
                f"the right memory beats a wrong one by 1 nat an answer, {r.ratio:.1f}x: {shown(gap, interval=True)}: {outcome}"
            )
    for challenger in [c for c in CHALLENGERS if c in systems_of(rows)]:
        for split in ("2wiki", "hotpotqa", TOGETHER):
            test = compare(rows, challenger, "start", split, RECALL)
            told.append(
                Target(
                    f"{challenger} beats its start by 0.15 of Recall@2, {split}", test, 0.15, significant=True
                ).told()
            )
        for control in ("cut", "shuffled"):
            test = compare(rows, challenger, control, TOGETHER, RECALL)
            told.append(
                Target(
                    f"{challenger} beats the control {control}, Recall@2, all pools", test, 0.0, significant=True
                ).told()
            )
        for base in BASELINES:
            test = compare(rows, challenger, base, TOGETHER, LIKELIHOOD)
            told.append(
                Target(
                    f"{challenger} beats {base} in the answer's log-likelihood, all pools", test, 0.0, significant=True
                ).told()
            )
    return told


def hardware() -> dict[str, Any]:
    """The machine."""
    model = platform.processor()
    if (path := Path("/proc/cpuinfo")).is_file():
        names = [
            line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"processor": model, "cores": os.cpu_count(), "system": platform.platform()}


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Share of supporting paragraphs in front, of training questions by step, of each joint run."""
    found = {}
    for name in ("joint", "live", "labels", "shuffled", "cut", "answer"):
        for metrics in sorted((run / name).glob("run-*/metrics.jsonl")):
            lines = {
                int(v["step"]): v
                for line in metrics.read_text(encoding="utf-8").splitlines()
                if (v := json.loads(line))
            }
            found[name] = [
                (step, float(v["positive_first"])) for step, v in sorted(lines.items()) if "positive_first" in v
            ]
    return found


def load(path: Path) -> Any:
    """A JSON file, or nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(run: Path, output: Path) -> None:
    """Write the results.

    Raises:
        InputError: step `evaluate` is not done.
    """
    rows, read = read_rows(run / "evaluation"), readings(run)
    systems = systems_of(rows)
    aligned = read_rows(run / "alignment") if (run / "alignment" / artefact.MANIFEST).is_file() else []
    tests, kept = tests_table(rows)
    tables = {
        "Recall@2 in the pools, as published: share of the supporting paragraphs among the first two": table(
            rows, systems, {s: (s, RECALL) for s in (*POOLS, TOGETHER, SCP)}
        ),
        f"Over all {len(MemoryStore.open(run / 'memory').row_ids)} chunks: share of the supporting paragraphs among the first twenty": table(
            rows, systems, {s: (s, "index.recall@20") for s in (*POOLS, TOGETHER, SCP)}
        ),
        "Mean rank in the pool of the paragraphs that the question leads to, and of those behind them": table(
            rows,
            systems,
            {
                f"{s}, {t}": (s, f"pool.{n}_rank")
                for s in POOLS
                for t, n in (("first hop", "first_hop"), ("bridging", "bridging"))
            },
        ),
        "Answers, all published pools together, two documents read by one generator": answer_table(rows),
        "Log-likelihood of the answer by set [nats]": table(rows, systems, {s: (s, LIKELIHOOD) for s in SPLITS}),
        "Paired differences, all published pools together": tests,
        "Reading: held-out scp documents": reading_table(read),
    }
    if aligned:
        tables["Utility alignment: rank correlation of score and utility in the pool"] = alignment_table(aligned)
    told = targets(rows, read) + (alignment_targets(aligned) if aligned else [])
    artefact.make_directory(output)
    pictures = {
        "recall.png": recall_bars(
            {s: {p: figures(chosen(rows, s, p)).get(RECALL) for p in (*POOLS, TOGETHER)} for s in systems}
        ),
        "learning.png": learning(curves(run)),
        "reading.png": reading_curve([(r.ratio, r.figures) for r in read]),
    }
    for name, data in pictures.items():
        if data is not None:
            atomic_write(output / name, data)
    copied = [str(p.name) for p in sorted((run / "alignment").glob("alignment-*.png"))] if aligned else []
    for name in copied:
        shutil.copyfile(run / "alignment" / name, output / name)
    made = {
        "hardware": hardware(),
        "versions": artefact.versions(),
        "seconds": load(run / "seconds.json"),
        "commands": load(run / "commands.json"),
        "questions": artefact.read_manifest(run / "data" / "questions", "QUESTIONS")["counts"],
        "recipes": {
            n: recipe_of(run / n)
            for n in (
                "pretrain/checkpoint",
                "instruct/checkpoint",
                "joint/checkpoint",
                "labels/checkpoint",
                "answer/checkpoint",
                "shuffled/checkpoint",
                "cut/checkpoint",
                "utilities",
                "memory",
            )
        },
    }
    result = {
        "targets": told,
        "systems": {s: {p: told_of(chosen(rows, s, p)) for p in (*SPLITS, TOGETHER)} for s in systems},
        "differences": kept,
        "reading": [
            {"memory_tokens": r.memory_tokens, "ratio": r.ratio, **{n: asdict(f) for n, f in r.figures.items()}}
            for r in read
        ],
        "alignment": {
            s: {n: asdict(f) for n, f in figures(chosen(aligned, s, TOGETHER)).items()} for s in systems_of(aligned)
        },
        "made_by": made,
    }
    atomic_write(output / "evidence.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    atomic_write(
        output / "evidence.md", markdown(tables, told, made, [n for n, d in pictures.items() if d is not None] + copied)
    )


def told_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Every figure of what was read and found in the pools."""
    return {name: asdict(figure) for name, figure in figures(rows).items() if not name.startswith("index.")}


def recipe_of(path: Path) -> Any:
    """What made an artefact, where it is there; without where files lie on this machine."""

    def portable(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: portable(v) for k, v in value.items() if k != "path"}
        return [portable(v) for v in value] if isinstance(value, list) else value

    return (
        portable(artefact.read_manifest(path)["made_by"].get("recipe"))
        if (path / artefact.MANIFEST).is_file()
        else None
    )


def markdown(tables: Mapping[str, Table], told: Sequence[str], made: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The report. Means over held-out questions, in brackets 95 % bootstrap intervals."""
    machine = made["hardware"]
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in made["seconds"].items())
    parts = [
        "# Evidence on published questions",
        "Means over held-out questions; in brackets 95 % bootstrap intervals. `start`: before joint training; `joint`: by the likelihood of the answer "
        "given each candidate; `live`: as `joint`, scored in the step, at equal cost; `answer`: straight-through, from `joint`; `labels`: annotated paragraphs; controls: `cut` (gradient cut), `shuffled` "
        "(answers handed on). Every system is read by the same generator.",
        "## Targets",
        "\n".join(f"* {line}" for line in told),
    ]
    for heading, of in tables.items():
        parts += [f"## {heading}", as_markdown(of)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += [
        "## What made it",
        "\n".join(f"    {line}" for line in made["commands"] or ["python -m infra.evidence"]),
        f"On {machine['processor']}, {machine['cores']} cores, {machine['system']}. Seconds by step: {spent}. "
        f"Questions: {json.dumps(made['questions'])}. Recipes and package versions: evidence.json.",
    ]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program("infra.evidence.report"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="output of python -m infra.evidence")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for evidence.json, evidence.md and pictures"
    )
    options = parser.parse_args(argv)
    write(Path(options.run), Path(options.output))
    print(f"{options.output}: evidence.md, evidence.json")
    return 0


if __name__ == "__main__":
    command_line(main)
