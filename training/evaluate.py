"""Compare systems on the same questions and pools: what they find, what they answer, and how likely the right answer is to them.

python -m training.evaluate --questions DIR --output DIR --system NAME=CHECKPOINT,MEMORY[,INDEX] [--system …]
[--baselines bm25,dense,text]

Rows are called RETRIEVER/GENERATOR: `after` is a system as it is, `bm25/after` its generator on what BM25 found,
`text/bm25` the plain LM on the raw passages that BM25 found. With --cross there are also `before/after` and
`after/before`, so that no gain is credited twice.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from clara.config.flags import program
from clara.data.questions import Question, read_questions
from clara.errors import InputError, command_line
from clara.retrieval.dense import folder_hash
from clara.storage import artefact
from clara.storage.artefact import hash_of
from clara.storage.paths import require_local
from training.evaluation.report import REPORT, Evaluation, write_report
from training.evaluation.retrievers import CONDITIONS
from training.evaluation.run import Measuring, compared_pairs, questions_hash
from training.evaluation.systems import BASELINES, Settings, SystemPaths
from training.evaluation.tables import as_text, figure_table
from training.registry.evaluation_log import track

KIND = "EVALUATION"


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog=program("training.evaluate"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", required=True, help="QUESTIONS directory")
    parser.add_argument(
        "--output",
        required=True,
        help="EVALUATION directory: report.json, report.md, report.html, per_question.parquet",
    )
    parser.add_argument(
        "--system",
        action="append",
        required=True,
        metavar="NAME=CHECKPOINT,MEMORY[,INDEX]",
        help="what to evaluate; repeatable, compared in this order",
    )
    parser.add_argument("--baselines", default="", help=f"comma-separated: {', '.join(BASELINES)} (default: none)")
    parser.add_argument(
        "--dense-model",
        default="",
        metavar="FOLDER",
        help="sentence-transformers folder of the baseline dense; nothing is downloaded",
    )
    parser.add_argument(
        "--cross",
        action="store_true",
        help="let every system's generator also read what every other system's retrieval found",
    )
    parser.add_argument(
        "--alignment",
        type=int,
        default=0,
        metavar="N",
        help="questions of each split whose utility alignment is measured; costs about N x pool x 2 readings for each row of the report and "
        "each of two readers (default 0)",
    )
    parser.add_argument(
        "--splits",
        default="unseen,seen",
        help="comma-separated splits of QUESTIONS; 'all' takes every question (default %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="questions of each split, drawn by their ids; 0: all (default 0)",
    )
    parser.add_argument(
        "--backbone",
        default="",
        help="folder of the language model (default: the one that each checkpoint holds or names)",
    )
    parser.add_argument(
        "--pool-size",
        type=int,
        default=defaults.pool_size,
        help="documents of a pool, for questions published without one (default %(default)s)",
    )
    parser.add_argument(
        "--num-selected",
        type=int,
        default=defaults.num_selected,
        metavar="K",
        help="rows that the generator reads (default %(default)s)",
    )
    parser.add_argument(
        "--generate",
        type=int,
        default=-1,
        metavar="N",
        help="questions of each split that are also answered in words; -1: all (default), 0: none",
    )
    parser.add_argument(
        "--conditions",
        default=",".join(defaults.conditions),
        help="what the answers' likelihoods are measured after reading (default %(default)s)",
    )
    parser.add_argument(
        "--generate-conditions",
        default=",".join(defaults.generate_conditions),
        help="what they are answered from, of index, pool, right, wrong, none (default %(default)s)",
    )
    parser.add_argument(
        "--retrieval-only",
        action="store_true",
        help="rank only: no likelihoods and no answers (seconds instead of minutes)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=defaults.max_new_tokens,
        help="longest generated answer, in tokens (default %(default)s)",
    )
    parser.add_argument(
        "--accept-stale",
        action="append",
        default=[],
        metavar="NAME",
        help="system whose MEMORY another compressor made, to measure that; repeatable",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every byte of each MEMORY against its sha256 before (default: sizes only)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of intervals and paired tests (default %(default)s)")
    parser.add_argument(
        "--tracking-uri", default="", help="MLflow store for figures and pictures, as sqlite:///PATH (default: none)"
    )
    parser.add_argument("--experiment", default="clara", help="MLflow experiment (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be evaluated, and stop")
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of the command line.

    Raises:
        InputError: a number or a name is out of range, or two options exclude each other.
    """
    for name, least in (
        ("num_selected", 1),
        ("pool_size", 2),
        ("max_new_tokens", 1),
        ("generate", -1),
        ("limit", 0),
        ("alignment", 0),
    ):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected {least} or more")
    baselines = _names("--baselines", options.baselines, BASELINES)
    if ("dense" in baselines) != bool(options.dense_model):
        raise InputError(
            f"--baselines {options.baselines or 'none'} with --dense-model {options.dense_model or 'none'}: dense needs the folder of an embedding "
            "model, and the folder is for dense; give both or neither"
        )
    if options.retrieval_only and options.alignment:
        raise InputError(
            f"--alignment {options.alignment} reads documents, and --retrieval-only reads none; leave one of them out"
        )
    conditions = _names("--conditions", options.conditions, CONDITIONS)
    generated = _names("--generate-conditions", options.generate_conditions, CONDITIONS)
    if options.generate and (unread := [name for name in generated if name not in conditions]):
        if options.generate_conditions != parser().get_default("generate_conditions"):
            raise InputError(
                f"--generate-conditions {unread[0]!r} is not among --conditions {options.conditions}; add it there"
            )
        generated = tuple(name for name in generated if name in conditions)
    return Settings(
        num_selected=options.num_selected,
        retrieval_only=options.retrieval_only,
        pool_size=options.pool_size,
        max_new_tokens=options.max_new_tokens,
        num_generated=options.generate if options.generate >= 0 else 10**9,
        generate_conditions=generated,
        conditions=conditions,
        baselines=baselines,
        dense=folder_hash(options.dense_model) if options.dense_model else "",
        cross=options.cross,
        num_aligned=options.alignment,
    )


def _names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(n.strip() for n in text.split(",") if n.strip())
    for name in names:
        if name not in known:
            raise InputError(f"{option}: {name!r} is not known; choose from {', '.join(known)}")
    return names


def chosen_questions(directory: str, splits: str, limit: int) -> list[Question]:
    """Questions of the splits, `limit` of each at most: those whose ids hash lowest, so that a larger limit only adds to them.

    Raises:
        InputError: a split is empty.
    """
    names = [None] if splits == "all" else [s.strip() for s in splits.split(",") if s.strip()]
    every = read_questions(directory)
    there = {q.split for q in every}
    for name in names:
        if name is not None and name not in there:
            raise InputError(
                f"--splits {splits}: {directory}: no question with split {name!r}; there are {', '.join(sorted(repr(s) for s in there))}; "
                "name those, or take every question with --splits all"
            )
    chosen: list[Question] = []
    for name in names:
        questions = [q for q in every if name is None or q.split == name]
        if limit:
            drawn = {q.question_id for q in sorted(questions, key=lambda q: hash_of(["limit", q.question_id]))[:limit]}
            questions = [q for q in questions if q.question_id in drawn]
        chosen += questions
    return chosen


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    require_local("--output", options.output)
    settings = settings_of(options)
    systems = [SystemPaths.parse(text) for text in options.system]
    names = [s.name for s in systems]
    if len(set(names)) != len(names):
        raise InputError(f"--system: names {names}; give each system its own")
    for name in options.accept_stale:
        if name not in names:
            raise InputError(f"--accept-stale {name!r}: no such system; there are {', '.join(names)}")
    questions = chosen_questions(options.questions, options.splits, options.limit)
    plan = {
        "questions": questions_hash(questions),
        "systems": {s.name: s.hashes() | {"stale": s.name in options.accept_stale} for s in systems},
        "settings": settings.plan(),
        "seed": options.seed,
    }
    output = Path(options.output)
    splits: dict[str, int] = {}
    for question in questions:
        splits[question.split] = splits.get(question.split, 0) + 1
    if options.dry_run:
        print(json.dumps(plan | {"number of questions": splits}, indent=1))
        return 0
    if artefact.up_to_date(output, KIND, plan):
        print(f"{output}: up to date")
    else:
        (artefact.make_directory(output) / artefact.MANIFEST).unlink(missing_ok=True)
        if options.verify:
            for memory in dict.fromkeys(system.memory for system in systems):
                artefact.Artefact.open(memory, "MEMORY", verify=True)
        measuring = Measuring(
            systems=systems,
            questions=questions,
            settings=settings,
            output=output,
            backbone=options.backbone,
            stale=options.accept_stale,
            dense_model=options.dense_model,
            device=options.device,
        )
        rows, absent = measuring.rows()
        counts: dict[str, Any] = {f"questions, split {k or 'none'}": v for k, v in splits.items()} | absent
        evaluation = Evaluation(rows, compared_pairs(names, rows), counts, names, options.seed)
        files = write_report(output, evaluation)
        artefact.write_manifest(
            output,
            kind=KIND,
            files=[artefact.file_entry(output, f) for f in files],
            recipe=plan,
            counts=counts,
            systems=plan["systems"],
            questions={
                "path": str(options.questions),
                "hash": plan["questions"],
                "manifest": artefact.manifest_hash(options.questions),
            },
        )
        print_tables(evaluation)
        print(f"\n{output}: report.md, report.html, {REPORT}")
    if options.tracking_uri:
        track(output, options.tracking_uri, options.experiment)
    return 0


def print_tables(evaluation: Evaluation) -> None:
    """The table of each split on the terminal."""
    for split, of in evaluation.figures().items():
        print(
            f"\n{split or 'all questions'}: means (intervals and paired differences in the report; log-likelihoods in nats an answer)"
        )
        print(as_text(figure_table(of, interval=False)))


if __name__ == "__main__":
    command_line(main)
