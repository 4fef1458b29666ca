"""Convert the published samples for the evidence: one corpus, EXAMPLES, and QUESTIONS split by document.

    python -m infra.evidence.data --data DIR --output DIR [--train-2wiki 240] [--train-scp 160] [--held-out-2wiki 60] …

Reads DIR/2wiki, hotpotqa, musique and scp as they were published. Writes corpus.jsonl, reading.jsonl (held-out `scp`
alone), examples/ (of `scp`), questions/ (splits `train`, `2wiki`, `hotpotqa`, `musique`, `scp`) and shuffled/ (the same
with the answers of `train` handed on among its questions: a control). No document that a held-out question needs is in
a training pool or an example, and no article of the same title is an example.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.data.corpus import read_rows
from clara.data.examples import Example, write_examples
from clara.data.input_files import input_hashes
from clara.data.questions import Question, write_questions
from clara.data.records import Document
from clara.errors import InputError, command_line
from clara.metrics import normalise_answer
from clara.retrieval.bm25 import Bm25
from clara.storage.manifest import hash_of, make_directory, up_to_date
from pipelines.build_examples import example_id, scp_examples
from pipelines.build_questions.convert import corpus_rows
from pipelines.build_questions.formats import FORMATS
from pipelines.corpus.whole import write_jsonl

TRAIN = ("2wiki", "2wiki/2wiki_train_sample.json")
HELD_OUT = {
    "2wiki": ("2wiki", "2wiki/2wiki_dev_sample.json"),
    "hotpotqa": ("hotpotqa", "hotpotqa/hotpotqa_dev_sample.json"),
    "musique": ("musique", "musique/musique_dev_sample.jsonl"),
}
SCP, SCP_FILE = "scp", "scp/scp_sample.jsonl"
SPLITS = (*HELD_OUT, SCP)
"""Held-out splits."""
_HARD_NEGATIVES = 4


@dataclass(frozen=True)
class Sizes:
    """How much is taken.

    Attributes:
        train_2wiki: training questions of 2WikiMultihopQA; those that are answered by yes or no, which need no
        document, are not taken.
        train_scp: documents of `scp` that training asks about.
        scp_each: training questions about each of them.
        held_out_2wiki: held-out questions of 2WikiMultihopQA.
        held_out_hotpotqa: questions of HotpotQA.
        held_out_musique: questions of MuSiQue, whose pools are twice as large.
        held_out_scp: documents of `scp` that are asked about, once each.
        scp_share: share of the `scp` documents that are held out.
        pool_size: documents of a pool of `scp`, which is published without.
        seed: orders pools, and hands answers on in the control.
    """

    train_2wiki: int = 240
    train_scp: int = 160
    scp_each: int = 2
    held_out_2wiki: int = 60
    held_out_hotpotqa: int = 60
    held_out_musique: int = 60
    held_out_scp: int = 60
    scp_share: float = 0.1
    pool_size: int = 10
    seed: int = 0


def drawn(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` of the questions at most: those whose ids hash lowest, so that more only add to them."""
    return sorted(questions, key=lambda q: hash_of(["evidence", q.question_id]))[:count]


def needs_document(question: Question) -> bool:
    """Whether more than yes or no is asked for."""
    return normalise_answer(question.answers[0]) not in ("yes", "no")


def published(data: Path, source: tuple[str, str], split: str, seed: int) -> tuple[list[Question], dict[str, Document]]:
    """Questions of a published file, and their documents."""
    name, file = source
    built = FORMATS[name].build([str(data / file)], {"seed": seed, "split": split, "skip_bad": False})
    return list(built.questions), {document.id: document for document in built.documents}


def is_held_out(example: Example, share: float) -> bool:
    """Whether a document of `scp` is kept from training: by its id alone."""
    return int(hash_of(["evidence", example.document_id])[:8], 16) < share * 2**32


def scp_questions(examples: Sequence[Example], split: str, sizes: Sizes, count: int, each: int) -> list[Question]:
    """`each` questions about each of `count` documents. Pools: documents that share words, and random ones."""
    distinct = {e.document_id: e for e in examples}.values()
    documents = sorted(distinct, key=lambda e: hash_of(["evidence", e.document_id]))[:count]
    position = {e.document_id: number for number, e in enumerate(documents)}
    asked = []
    for example in documents:
        pairs = list(range(len(example.questions)))
        random.Random(f"{sizes.seed}:{example.document_id}").shuffle(pairs)
        for pair in pairs[:each]:
            name = f"scp-{example.document_id[:16]}-{pair}"
            asked.append(
                Question(name, example.questions[pair], (example.answers[pair],), (example.document_id,), split=split)
            )
    if not asked:
        return []
    near, _ = Bm25.of_texts([e.document for e in documents], range(len(documents))).search(
        [q.question for q in asked], _HARD_NEGATIVES, exclude=[{position[q.positive_ids[0]]} for q in asked]
    )
    complete = []
    for question, rows in zip(asked, near.tolist(), strict=True):
        rng = random.Random(f"{sizes.seed}:{question.question_id}")
        pool = [*question.positive_ids, *(documents[row].document_id for row in rows if row >= 0)][: sizes.pool_size]
        rest = [e.document_id for e in documents if e.document_id not in pool]
        pool += rng.sample(rest, min(len(rest), max(0, sizes.pool_size - len(pool))))
        rng.shuffle(pool)
        complete.append(dataclasses.replace(question, candidate_ids=tuple(pool)))
    return complete


def handed_on(questions: Sequence[Question], seed: int) -> list[Question]:
    """The control: every question of `train` with the answers of another one, along a random cycle."""
    order = [position for position, q in enumerate(questions) if q.split == "train"]
    random.Random(f"{seed}:handed on").shuffle(order)
    giver = dict(zip(order, order[1:] + order[:1], strict=True))
    return [
        dataclasses.replace(q, answers=questions[giver[i]].answers) if i in giver else q
        for i, q in enumerate(questions)
    ]


@dataclass(frozen=True)
class Made:
    """Everything that is written."""

    questions: list[Question]
    documents: dict[str, Document]
    examples: list[Example]
    counts: dict[str, int]


def make(data: Path, sizes: Sizes) -> Made:
    """Split the samples.

    Raises:
        InputError: a file is missing or malformed, or no training question is left.
    """
    held: list[Question] = []
    documents: dict[str, Document] = {}
    for split, source in HELD_OUT.items():
        questions, own = published(data, source, split, sizes.seed)
        held += drawn(questions, getattr(sizes, f"held_out_{split}"))
        documents |= own
    needed = {name for q in held for name in q.positive_ids}
    secret_titles = {documents[name].title for name in needed}
    every, own = published(data, TRAIN, "train", sizes.seed)
    documents |= own
    open_questions = [q for q in every if needs_document(q)]
    apart = [q for q in open_questions if not needed & {*q.candidate_ids}]
    train = drawn(apart, sizes.train_2wiki)
    examples, _ = scp_examples((str(data / SCP_FILE), line, row) for line, row in read_rows(str(data / SCP_FILE)))
    known = [e for e in examples if e.kind == "qa" and e.title not in secret_titles]
    secret = [e for e in known if is_held_out(e, sizes.scp_share)]
    taught = [e for e in known if not is_held_out(e, sizes.scp_share)]
    train += scp_questions(taught, "train", sizes, sizes.train_scp, sizes.scp_each)
    held += scp_questions(secret, SCP, sizes, sizes.held_out_scp, 1)
    if not train:
        raise InputError(f"--data {data}: no training question is left; raise --train-2wiki or --train-scp")
    documents |= {e.document_id: Document(e.document_id, e.title, e.text) for e in known}
    # The text itself, written from its memory: that has to hold what a document is about, not only what is asked.
    retold = [
        Example(example_id(e.document_id, "autoencode"), e.document_id, e.title, e.text, "autoencode") for e in taught
    ]
    counts = {
        "2wiki: questions": len(every),
        "2wiki: dropped, answered by yes or no": len(every) - len(open_questions),
        "2wiki: dropped, a held-out document in the pool": len(open_questions) - len(apart),
        "scp: dropped, title of a held-out document": len(examples) - len(known),
        "scp: documents held out": len(secret),
    }
    used = {name for q in [*train, *held] for name in (*q.positive_ids, *q.candidate_ids)}
    return Made([*train, *held], {name: documents[name] for name in sorted(used)}, [*taught, *retold], counts)


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = plain_parser("infra.evidence.data", __doc__)
    found.add_argument("--data", required=True, metavar="DIR", help="folder with 2wiki/, hotpotqa/, musique/ and scp/")
    found.add_argument("--output", required=True, metavar="DIR", help="folder to write into")
    standard = Sizes()
    for name, kind, text in (
        ("train_2wiki", int, "training questions of 2WikiMultihopQA"),
        ("train_scp", int, "documents of scp that training asks about"),
        ("scp_each", int, "training questions about each of them"),
        *((f"held_out_{split}", int, f"held-out questions of {split}") for split in SPLITS),
        ("scp_share", float, "share of scp's documents that are held out"),
        ("pool_size", int, "documents of a pool of scp"),
        ("seed", int, "orders pools, hands answers on"),
    ):
        default = getattr(standard, name)
        found.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} (default: {default})"
        )
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return found


def resolve(options: argparse.Namespace) -> Sizes:
    """Sizes of the command line.

    Raises:
        InputError: one is out of its range.
    """
    for name, valid, expected in (
        ("train_2wiki", options.train_2wiki >= 0, "0 or more"),
        ("train_scp", options.train_scp >= 0, "0 or more"),
        ("scp_each", options.scp_each >= 1, "1 or more"),
        *((f"held_out_{split}", getattr(options, f"held_out_{split}") >= 1, "1 or more") for split in SPLITS),
        ("scp_share", 0 < options.scp_share < 1, "more than 0 and less than 1"),
        ("pool_size", options.pool_size >= 2, "2 or more"),
    ):
        if not valid:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}; expected {expected}")
    return Sizes(**{name: getattr(options, name) for name in asdict(Sizes())})


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    sizes, data, output = resolve(options), Path(options.data), Path(options.output)
    files = [str(data / file) for _, file in (TRAIN, *HELD_OUT.values())] + [str(data / SCP_FILE)]
    if options.dry_run:
        print(json.dumps({"inputs": files, "sizes": asdict(sizes), "output": options.output}, indent=1))
        return 0
    recipe: dict[str, Any] = {"program": "evidence_data", "settings": asdict(sizes), "inputs": input_hashes(files)}
    kinds = {"questions": "QUESTIONS", "shuffled": "QUESTIONS", "examples": "EXAMPLES"}
    if (output / "corpus.jsonl").is_file() and all(
        up_to_date(output / name, kind, recipe) for name, kind in kinds.items()
    ):
        print(f"{output}: up to date")
        return 0
    made = make(data, sizes)
    write_jsonl(make_directory(output) / "corpus.jsonl", corpus_rows(made.documents.values()))
    reading = {name for q in made.questions if q.split == SCP for name in (*q.positive_ids, *q.candidate_ids)}
    write_jsonl(output / "reading.jsonl", corpus_rows(d for name, d in made.documents.items() if name in reading))
    write_examples(output / "examples", made.examples, recipe=recipe)
    write_questions(output / "shuffled", handed_on(made.questions, sizes.seed), recipe=recipe)
    manifest = write_questions(output / "questions", made.questions, recipe=recipe, counts=made.counts)
    print(
        f"{output}: {len(made.documents)} documents, {len(made.examples)} examples, "
        f"QUESTIONS {json.dumps(manifest['counts'])}"
    )
    return 0


if __name__ == "__main__":
    command_line(main)
