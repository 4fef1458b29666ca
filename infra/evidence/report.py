"""Report of a run of the evidence: tables, paired tests, targets, pictures.

python -m infra.evidence.report --run DIR --output DIR

An unfinished run gives the tables of its finished steps.
"""

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.errors import command_line
from clara.memory.store import MemoryStore
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST, make_directory, read_manifest, versions
from infra.evidence.data import SCP, SPLITS
from infra.evidence.pictures import learning, reading_curve, recall_bars
from infra.evidence.reading import Reading, reading_table, readings
from infra.evidence.rows import LIKELIHOOD, POOLS, RECALL, TOGETHER, chosen, read_rows, systems_of, table
from infra.evidence.tables import Tests, alignment_table, answer_table, tests, tests_record, tests_table
from infra.evidence.targets import alignment_targets, targets
from infra.hardware import processor
from training.evaluation.measures import Row, figures
from training.evaluation.tables import Table, as_markdown


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Share of training questions whose first paragraph is a supporting one, by step, of each joint run."""
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


def tables_of(
    run: Path, rows: Sequence[Row], aligned: Sequence[Row], read: Sequence[Reading], differences: Tests
) -> dict[str, Table]:
    """Every table by its heading."""
    systems, num_chunks = systems_of(rows), len(MemoryStore.open(run / "memory").row_ids)
    splits = (*POOLS, TOGETHER, SCP)
    hops = {"first hop": "first_hop", "bridging": "bridging"}
    ranks = {f"{split}, {title}": (split, f"pool.{hop}_rank") for split in POOLS for title, hop in hops.items()}
    tables = {
        "Recall@2 in the pools, as published: share of the supporting paragraphs among the first two": table(
            rows, systems, {split: (split, RECALL) for split in splits}
        ),
        f"Over all {num_chunks} chunks: share of the supporting paragraphs among the first twenty": table(
            rows, systems, {split: (split, "index.recall@20") for split in splits}
        ),
        "Mean rank in the pool of the paragraphs that the question leads to, and of those behind them": table(
            rows, systems, ranks
        ),
        "Answers, all published pools together, two documents read by one generator": answer_table(rows),
        "Log-likelihood of the answer by set [nats]": table(rows, systems, {s: (s, LIKELIHOOD) for s in SPLITS}),
        "Paired differences, all published pools together": tests_table(differences),
        "Reading: held-out scp documents": reading_table(read),
    }
    if aligned:
        tables["Utility alignment: rank correlation of score and utility in the pool"] = alignment_table(aligned)
    return tables


def draw(run: Path, output: Path, rows: Sequence[Row], read: Sequence[Reading]) -> list[str]:
    """Write the pictures and copy those of the alignment. Returns their names."""
    splits = (*POOLS, TOGETHER)
    recall = {s: {p: figures(chosen(rows, s, p)).get(RECALL) for p in splits} for s in systems_of(rows)}
    pictures = {
        "recall.png": recall_bars(recall),
        "learning.png": learning(curves(run)),
        "reading.png": reading_curve([(r.ratio, r.figures) for r in read]),
    }
    drawn = {name: data for name, data in pictures.items() if data is not None}
    for name, data in drawn.items():
        atomic_write(output / name, data)
    copied = sorted((run / "alignment").glob("alignment-*.png")) if finished(run / "alignment") else []
    for picture in copied:
        shutil.copyfile(picture, output / picture.name)
    return [*drawn, *(picture.name for picture in copied)]


def provenance(run: Path) -> dict[str, Any]:
    """Machine, versions, commands, and the recipes of what was made."""
    trained = ("pretrain", "instruct", "joint", "labels", "answer", "shuffled", "cut")
    made = (*(f"{name}/checkpoint" for name in trained), "utilities", "memory")
    return {
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "seconds": load(run / "seconds.json"),
        "commands": load(run / "commands.json"),
        "questions": read_manifest(run / "data" / "questions", "QUESTIONS")["counts"],
        "recipes": {name: recipe_of(run / name) for name in made},
    }


def write(run: Path, output: Path) -> None:
    """Write the results.

    Raises:
        InputError: step `evaluate` is not done.
    """
    rows, read = read_rows(run / "evaluation"), readings(run)
    aligned = read_rows(run / "alignment") if finished(run / "alignment") else []
    outcomes = targets(rows, read) + (alignment_targets(aligned) if aligned else [])
    differences = tests(rows)
    tables = tables_of(run, rows, aligned, read, differences)
    make_directory(output)
    pictures, made = draw(run, output, rows, read), provenance(run)
    result = {
        "targets": outcomes,
        "systems": {
            system: {split: pool_figures(chosen(rows, system, split)) for split in (*SPLITS, TOGETHER)}
            for system in systems_of(rows)
        },
        "differences": tests_record(differences),
        "reading": [
            {"memory_tokens": r.memory_tokens, "ratio": r.ratio, **{n: asdict(f) for n, f in r.figures.items()}}
            for r in read
        ],
        "alignment": {
            system: {name: asdict(figure) for name, figure in figures(chosen(aligned, system, TOGETHER)).items()}
            for system in systems_of(aligned)
        },
        "made_by": made,
    }
    atomic_write(output / "evidence.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    atomic_write(output / "evidence.md", markdown(tables, outcomes, made, pictures))


def finished(folder: Path) -> bool:
    """Whether an artefact is there."""
    return (folder / MANIFEST).is_file()


def pool_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Every figure of what was retrieved from the pools and read."""
    return {name: asdict(figure) for name, figure in figures(rows).items() if not name.startswith("index.")}


def recipe_of(path: Path) -> Any:
    """The recipe of an artefact, if it exists, without the paths of this machine."""

    def portable(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: portable(v) for k, v in value.items() if k != "path"}
        return [portable(v) for v in value] if isinstance(value, list) else value

    return portable(read_manifest(path)["made_by"].get("recipe")) if finished(path) else None


def markdown(
    tables: Mapping[str, Table], outcomes: Sequence[str], made: Mapping[str, Any], pictures: Sequence[str]
) -> str:
    """The report. Means over held-out questions, in brackets 95 % bootstrap intervals."""
    machine = made["hardware"]
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in made["seconds"].items())
    parts = [
        "# Evidence on published questions",
        "Means over held-out questions; in brackets 95 % bootstrap intervals. `start`: before joint training; "
        "`joint`: by the likelihood of the answer given each candidate; `live`: as `joint`, scored in the step, at "
        "equal cost; `answer`: straight-through, from `joint`; `labels`: annotated paragraphs; controls: `cut` "
        "(gradient cut), `shuffled` (answers handed on). Every system is read by the same generator.",
        "## Targets",
        "\n".join(f"* {line}" for line in outcomes),
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
    parser = plain_parser("infra.evidence.report", __doc__)
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
