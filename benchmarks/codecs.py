"""Cost of each memory codec: answer likelihood, F1 and Recall@5 against bytes per document, by compression ratio.

    python -m benchmarks.codecs --system NAME=CHECKPOINT,MEMORY [--system …] --questions DIR --splits NAMES --work DIR
    [--output DIR]

Each MEMORY (in float16) is stored again in every codec, without a model; the same questions are then asked of each.
Systems differ in compression.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.environment import RESULTS, environment, save
from clara.config.flags import plain_parser
from clara.errors import InputError, command_line
from clara.intervals import PairedTest
from clara.memory.codec import CODECS, layout
from clara.memory.product_quantiser import FILE, Codebook, sample_rows, save_codebook, train_codebook
from clara.memory.shards import write_shard
from clara.memory.store import MemoryStore, complete_memory
from clara.storage.manifest import file_entry, make_directory, up_to_date
from infra.steps import Step, run_step
from training.evaluation.measures import Figure, Row, differences, figures
from training.evaluation.systems import SystemPaths
from training.evaluation.tables import as_markdown, shown

MEASURES = {
    "right.log_likelihood": "answer, right document [nats]",
    "pool.log_likelihood": "answer, found in the pool [nats]",
    "right.f1": "F1, right document",
    "pool.recall@5": "Recall@5 in the pool",
}
EXACT = "float16"


def transcode(store: MemoryStore, target: Path, codec: str) -> None:
    """The same rows in another codec; done once.

    Raises:
        InputError: the MEMORY is not in float16, or too small for a codebook.
    """
    if store.codec != EXACT:
        raise InputError(
            f"{store.directory}: its codec is {store.codec}; give a MEMORY in {EXACT}, of which the others are made"
        )
    recipe = {"program": "benchmarks.codecs", "memory": store.hash, "codec": codec}
    if up_to_date(target, "MEMORY", recipe):
        return
    codebook: Codebook | None = None
    files = []
    make_directory(target)
    if width := CODECS[codec].codebook_width:
        codebook = train_codebook(store.memory(sample_rows(store.row_ids.tolist(), store.num_memory_tokens)), width)
        save_codebook(target, codebook)
        files.append(file_entry(target, FILE))
    shards = [
        write_shard(
            target,
            name,
            store.records(rows),
            store.memory(rows),
            store.keys(rows),
            codec,
            fingerprint=store.fingerprint,
            codebook=codebook,
        )
        for name, rows in store.iter_shards()
    ]
    complete_memory(
        target,
        shards,
        fingerprint=store.fingerprint_fields,
        codec=codec,
        num_shards=store.num_shards,
        recipe=recipe,
        counts={},
        extra_files=files,
    )


def bytes_a_document(codec: str, store: MemoryStore) -> int:
    """Bytes of one chunk's memory in a codec, without its key and without the codebook, which all share."""
    tensors = layout(codec, store.num_memory_tokens, store.hidden_size).values()
    return sum(kind.itemsize * int(np.prod(shape)) for kind, shape in tensors)


def fidelity(store: MemoryStore, other: MemoryStore) -> float:
    """Mean cosine of a chunk's flattened memory in both."""
    rows = store.row_ids[:256]
    a, b = (of.memory(rows).reshape(len(rows), -1) for of in (store, other))
    return float(np.mean((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


@dataclass(frozen=True)
class Measured:
    """One codec at one compression."""

    system: str
    compression: float
    codec: str
    num_bytes: int
    cosine: float
    figures: Mapping[str, Figure]
    against: Mapping[str, PairedTest]


def measured(system: SystemPaths, work: Path, evaluation: Path) -> list[Measured]:
    """What the evaluation says of every codec of a system, beside float16."""
    rows: dict[str, list[Row]] = {}
    for row in pq.read_table(evaluation / "per_question.parquet").to_pylist():
        rows.setdefault(row["system"], []).append(row)
    store = MemoryStore.open(system.memory)
    compression = float(np.mean([c.num_tokens for c in store.records(store.row_ids)])) / store.num_memory_tokens
    found = []
    for codec in CODECS:
        other = MemoryStore.open(memory_of(system, work, codec))
        exact = {} if codec == EXACT else differences(rows[codec], rows[EXACT])
        found.append(
            Measured(
                system.name,
                compression,
                codec,
                bytes_a_document(codec, store),
                fidelity(store, other),
                figures(rows[codec]),
                exact,
            )
        )
    return found


def memory_of(system: SystemPaths, work: Path, codec: str) -> Path:
    """Folder of a system's MEMORY in a codec."""
    return Path(system.memory) if codec == EXACT else work / system.name / codec


def table(found: Sequence[Measured]) -> str:
    """A line per compression and codec: 95 % interval in brackets, then the paired difference to float16."""
    lines = []
    for m in found:
        cells = []
        for name in MEASURES:
            cell = shown(m.figures[name], interval=True) if name in m.figures else ""
            if name in m.against:
                d = m.against[name]
                cell += f"; {d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            cells.append(cell)
        lines.append([f"{m.compression:.1f}x", m.codec, str(m.num_bytes), f"{m.cosine:.4f}", *cells])
    return as_markdown((["compression", "codec", "bytes a document", "cosine to float16", *MEASURES.values()], lines))


def draw(found: Sequence[Measured], target: Path) -> None:
    """Three curves over bytes: likelihood, F1, Recall@5, a line for each compression."""
    from matplotlib.figure import Figure as Canvas

    names = ("right.log_likelihood", "right.f1", "pool.recall@5")
    canvas = Canvas(figsize=(13, 3.8), layout="constrained")
    for axes, name in zip(canvas.subplots(1, len(names)), names, strict=True):
        for system in dict.fromkeys(m.system for m in found):
            of = sorted((m for m in found if m.system == system and name in m.figures), key=lambda m: m.num_bytes)
            if of:
                values = [m.figures[name] for m in of]
                errors = [[f.value - f.low for f in values], [f.high - f.value for f in values]]
                axes.errorbar(
                    [m.num_bytes for m in of],
                    [f.value for f in values],
                    yerr=errors,
                    marker="o",
                    capsize=3,
                    label=f"{of[0].compression:.1f}x",
                )
                for m in of:
                    axes.annotate(
                        m.codec,
                        (m.num_bytes, m.figures[name].value),
                        fontsize=7,
                        xytext=(3, 5),
                        textcoords="offset points",
                    )
        axes.set(xlabel="bytes a document", title=MEASURES[name], xscale="log")
        axes.grid(alpha=0.3)
    canvas.axes[0].legend(fontsize=8)
    canvas.savefig(target, dpi=110, metadata={"Software": None})


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.codecs", __doc__)
    add = parser.add_argument
    add("--system", action="append", required=True, metavar="NAME=CHECKPOINT,MEMORY", help="a compression; repeatable")
    add("--questions", required=True, metavar="DIR", help="QUESTIONS with pools")
    add("--splits", default="all", help="of the questions, comma-separated (default: %(default)s)")
    add("--limit", type=int, default=0, metavar="N", help="questions of each split; 0: all (default: %(default)s)")
    add(
        "--generate",
        type=int,
        default=0,
        metavar="N",
        help="of these, answered in words as well (default: %(default)s)",
    )
    add("--backbone", default="", help="folder of the LM (default: the one that each checkpoint holds or names)")
    add("--work", required=True, metavar="DIR", help="gets the MEMORYs and the evaluations")
    add(
        "--output",
        default=str(RESULTS / "codecs"),
        metavar="DIR",
        help="gets results.json, results.md and codecs.png (default: %(default)s)",
    )
    add("--dry-run", action="store_true", help="print what would be measured and stop")
    options = parser.parse_args(argv)
    systems = [SystemPaths.parse(text) for text in options.system]
    work, output = Path(options.work), Path(options.output)
    if options.dry_run:
        print("\n".join(f"{s.name}: {codec}: {memory_of(s, work, codec)}" for s in systems for codec in CODECS))
        return 0
    found: list[Measured] = []
    for number, system in enumerate(systems, 1):
        for codec in CODECS:
            if codec != EXACT:
                transcode(MemoryStore.open(system.memory), memory_of(system, work, codec), codec)
        given = [
            part
            for codec in CODECS
            for part in ("--system", f"{codec}={system.checkpoint},{memory_of(system, work, codec)}")
        ]
        evaluation = work / system.name / "evaluation"
        command = [
            sys.executable,
            "-m",
            "training.evaluate",
            "--questions",
            options.questions,
            "--splits",
            options.splits,
            "--limit",
            str(options.limit),
            "--backbone",
            options.backbone,
            *given,
            "--num-selected",
            "2",
            "--conditions",
            "pool,right,wrong,none",
            "--generate",
            str(options.generate),
            "--generate-conditions",
            "right",
            "--max-new-tokens",
            "10",
            "--output",
            str(evaluation),
        ]
        run_step(Step(f"Evaluate {system.name} in {len(CODECS)} codecs", command), number, len(systems))
        found += measured(system, work, evaluation)
    text = (
        "# Codecs\n\nMeans over questions, 95 % intervals; behind the semicolon the paired difference to float16.\n\n"
        f"{table(found)}\n\n![codecs.png](codecs.png)\n"
    )
    made_by = environment("benchmarks.codecs")
    # The paths of folders on this machine mean nothing to anybody else.
    for folder in (
        options.questions,
        options.work,
        options.output,
        options.backbone,
        *(p for s in systems for p in (s.checkpoint, s.memory)),
    ):
        made_by["command"] = made_by["command"].replace(folder, Path(folder).name) if folder else made_by["command"]
    result: dict[str, Any] = {"measured": [asdict(m) for m in found], "made_by": made_by}
    save(output, result, text)
    draw(found, output / "codecs.png")
    print(f"{text}\n{output}: results.json, results.md, codecs.png")
    return 0


if __name__ == "__main__":
    command_line(main)
