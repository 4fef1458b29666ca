"""What compressing in int8 costs: cosine of the memory, answer likelihood and Recall@5 beside the exact MEMORY.

    python -m benchmarks.int8 --checkpoint DIR --memory DIR --questions DIR [--backbone DIR] [--documents 300]

Chunks of a MEMORY in float32 or bfloat16 are compressed again in int8: those that answer the questions, and the first
others. Questions are encoded, and answers read, in the type of that MEMORY, so that the memory alone differs. A
question's answer is read from its first right chunk; Recall@5 is over the chunks that were compressed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import RESULTS, environment, save
from clara.arrays import Floats
from clara.config.encoding import INT8
from clara.config.flags import plain_parser
from clara.config.model import Score
from clara.data.questions import Question, read_questions
from clara.errors import InputError, command_line
from clara.intervals import paired_test
from clara.memory.compress import encode_chunks
from clara.memory.fingerprint import check, of_checkpoint
from clara.memory.store import MemoryStore
from clara.model.array_geometry import unit_rows
from clara.model.checkpoint import load_compressor
from clara.model.model import ClaraModel

_DEPTH = 5
_BATCH_TOKENS = 4096
_QUESTIONS_AT_ONCE = 16


def recalls(scores: Floats, rows: Sequence[int], questions: Sequence[Question], store: MemoryStore) -> list[float]:
    """Recall@5 of each question by scores `[questions, rows]`, without its excluded documents."""
    document = dict(zip(store.row_ids.tolist(), store.document_ids, strict=True))
    found = []
    for line, question in zip(scores, questions, strict=True):
        ranked = [document[rows[i]] for i in np.argsort(-line, kind="stable")]
        kept = [name for name in dict.fromkeys(ranked) if name not in question.exclude_ids]
        positive = {*question.positive_ids}
        found.append(len(positive & {*kept[:_DEPTH]}) / len(positive))
    return found


def scores_of(query: Floats, memory: Floats, score: Score) -> Floats:
    """Scores `[questions, rows]`; a centred score subtracts the mean of these rows."""
    return unit_rows(query, score) @ unit_rows(memory, score, memory.mean(axis=0) if score.centred else None).T


def likelihoods(model: ClaraModel, questions: Sequence[Question], memories: Sequence[Floats]) -> Floats:
    """Log-likelihood of each question's answer `[memories, questions]`, in nats."""
    found = []
    for number, question in enumerate(questions):
        given = [torch.from_numpy(memory[number][None]) for memory in memories]
        nats, _ = model.answer_log_likelihood(
            [question.question] * len(given), given, [question.answers[0]] * len(given)
        )
        found.append(nats.numpy())
    return np.stack(found, axis=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    store = MemoryStore.open(options.memory)
    if store.fingerprint_fields.dtype == INT8:
        raise InputError(f"--memory {options.memory}: was compressed in int8; give one in float32 or bfloat16")
    made = store.fingerprint_fields
    check([of_checkpoint(options.checkpoint, made.encoding, backbone=options.backbone)], made, options.memory)
    there = {*store.document_ids}
    asked = [
        q
        for q in read_questions(options.questions, options.split)
        if q.answers and q.positive_ids and {*q.positive_ids} <= there
    ][: options.num_questions]
    right = [store.rows_of(q.positive_ids[0])[0] for q in asked]
    positive = [row for q in asked for document in q.positive_ids for row in store.rows_of(document)]
    rows = list(dict.fromkeys([*positive, *store.row_ids.tolist()]))[: options.documents]
    model = load_compressor(options.checkpoint, INT8, backbone=options.backbone)
    exact = store.memory(rows)
    rounded = (
        encode_chunks(model, store.records(rows), batch_tokens=_BATCH_TOKENS).astype(np.float16).astype(np.float32)
    )
    flat = [memory.reshape(len(rows), -1) for memory in (exact, rounded)]
    cosines = (flat[0] * flat[1]).sum(axis=1) / np.prod([np.linalg.norm(a, axis=1) for a in flat], axis=0)
    position = {row: number for number, row in enumerate(rows)}
    texts = [q.question for q in asked]
    query = torch.cat(
        [model.encode_questions(texts[i : i + _QUESTIONS_AT_ONCE]) for i in range(0, len(texts), _QUESTIONS_AT_ONCE)]
    ).numpy()
    by_memory = [
        recalls(scores_of(query, memory, model.settings.score), rows, asked, store) for memory in (exact, rounded)
    ]
    nats = likelihoods(model, asked, [memory[[position[row] for row in right]] for memory in (exact, rounded)])
    measures = {"answer, right chunk [nats]": nats, "Recall@5": np.array(by_memory)}
    return {
        "exact": store.fingerprint_fields.dtype,
        "chunks": len(rows),
        "questions": len(asked),
        "cosine": {"mean": float(cosines.mean()), "least": float(cosines.min())},
        "measures": {
            name: {"exact": float(a.mean()), "int8": float(b.mean()), "difference": asdict(paired_test(b, a))}
            for name, (a, b) in measures.items()
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "# Compressing in int8",
        "",
        f"`{found['command']}`",
        "",
        f"{found['chunks']} chunks, {found['questions']} held-out questions; {found['processor']}. Cosine of a chunk's "
        f"memory to that in {found['exact']}: {found['cosine']['mean']:.5f} in the mean, "
        f"{found['cosine']['least']:.5f} at least.",
        "",
        f"| | {found['exact']} | int8 | difference, 95 % interval |",
        "|---|---|---|---|",
    ]
    for name, values in found["measures"].items():
        by = values["difference"]
        lines.append(
            f"| {name} | {values['exact']:.3f} | {values['int8']:.3f} | "
            f"{by['difference']:+.4f} [{by['low']:+.4f}, {by['high']:+.4f}] |"
        )
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.int8", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="CHECKPOINT that made the MEMORY")
    add("--memory", required=True, metavar="DIR", help="MEMORY in float32 or bfloat16")
    add("--questions", required=True, metavar="DIR", help="QUESTIONS with positive documents and answers")
    add("--backbone", default="", metavar="DIR", help="folder of the LM (default: the checkpoint's)")
    add("--split", default="unseen", help="of the questions (default: %(default)s)")
    add("--documents", type=int, default=300, metavar="N", help="chunks to compress (default: %(default)s)")
    add("--num-questions", type=int, default=60, metavar="N", help="questions, the first ones (default: %(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="torch threads (default: %(default)s)")
    add("--output", type=Path, default=RESULTS / INT8, metavar="DIR", help="gets results.json and results.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    about = environment("benchmarks.int8")
    for folder in (options.checkpoint, options.memory, options.questions, options.backbone, str(options.output)):
        # The paths of folders on this machine mean nothing to anybody else.
        about["command"] = about["command"].replace(folder, Path(folder).name) if folder else about["command"]
    result = {**about, **measure(options)}
    save(options.output, result, markdown(result))
    print(markdown(result))
    return 0


if __name__ == "__main__":
    command_line(main)
