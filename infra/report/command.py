"""Whether a system pays on your own corpus: quality, latency and bytes beside BM25, dense retrieval and standard RAG.

python -m infra.report --questions DIR --checkpoint DIR --memory DIR [--index DIR] --output DIR
[--dense-model FOLDER_OR_URL]

The EVALUATION that it rests on is in the folder `evaluation` of the output; an interrupted one is resumed. Without
--splits the questions of split `unseen` are asked, or all of them where there is no such split.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.config.tree import Config
from clara.data.questions import read_questions
from clara.errors import InputError, command_line
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST, file_entry, up_to_date, write_manifest
from infra.report.ways import SYSTEM
from training.evaluate import Planned, evaluate, planned
from training.evaluation.systems import SystemPaths

if TYPE_CHECKING:
    from clara.config.evaluation import Baseline

KIND = "REPORT"
MEASURES = {
    "F1": "index.f1",
    "EM": "index.exact_match",
    "cover": "index.cover_match",
    "LL": "index.log_likelihood",
    "R@5": "index.recall@5",
    "MRR": "index.mrr",
}
"""Measures of the report by heading, all over the whole corpus; `--measure` takes one that every question has."""
_DECIDING = ("F1", "EM", "cover", "LL")
_FEWEST = 2


def parser() -> Command:
    """The command line's arguments."""
    found = Command("infra.report", __doc__)
    for name in ("questions", "checkpoint", "memory"):
        add_setting(found, name, metavar="DIR", required=True)
    add_setting(found, "index", metavar="DIR")
    add_setting(found, "output", metavar="DIR", required=True)
    add_setting(found, "backbone.path", "--backbone", metavar="DIR")
    add_dense_settings(found, "evaluation.dense_model")
    add_setting(found, "retrieval.exact_rows")
    add_setting(found, "evaluation.splits", optional=True, note="unseen, or all where there is no such split")
    add_setting(found, "evaluation.limit")
    add_setting(found, "evaluation.num_selected", metavar="K")
    add_setting(found, "evaluation.max_new_tokens")
    add_setting(found, "device")
    add_setting(found, "seed")
    add_setting(found, "tracking.uri", "--tracking-uri", metavar="URI")
    add = found.add_argument
    add("--measure", choices=_DECIDING, default="F1", help="what the recommendation compares first (default: F1)")
    add("--timed", type=int, default=20, metavar="N", help="questions that are timed one by one (default: 20)")
    add("--dry-run", action="store_true", help="check the input, print what would be measured, and stop")
    return found


def configured(options: argparse.Namespace) -> Config:
    """The settings of the evaluation that the report rests on."""
    config: Config = options.config
    splits = options.splits
    if splits is None:
        there = {question.split for question in read_questions(options.questions)}
        splits = ["unseen"] if "unseen" in there else ["all"]
    baselines: tuple[Baseline, ...] = ("bm25", "dense", "text") if config.evaluation.dense_model else ("bm25", "text")
    changed = {
        "splits": tuple(splits),
        "baselines": baselines,
        "cross": True,  # of one system: the plain LM also reads what it finds
        "conditions": ("index",),
        "generate_conditions": ("index",),
    }
    evaluation = config.evaluation.model_copy(update=changed)
    return config.model_copy(update={"output": str(Path(config.output) / "evaluation"), "evaluation": evaluation})


def checked(options: argparse.Namespace) -> Planned:
    """The evaluation, its input checked.

    Raises:
        InputError: an artefact is missing or damaged, or there are too few questions.
    """
    if options.timed < _FEWEST:
        raise InputError(f"--timed {options.timed}: expected {_FEWEST} or more, as intervals are over questions")
    plan = planned(
        configured(options), [SystemPaths(SYSTEM, options.checkpoint, options.memory, options.index or None)]
    )
    if len(plan.questions) < _FEWEST:
        raise InputError(
            f"--questions {options.questions}: {len(plan.questions)} chosen; expected {_FEWEST} or more, to compare by"
        )
    return plan


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    plan = checked(options)
    output = Path(options.output)
    recipe = {"evaluation": plan.recipe, "measure": options.measure, "timed": options.timed}
    if options.dry_run:
        print(json.dumps(recipe | {"number of questions": Counter(q.split for q in plan.questions)}, indent=1))
        return 0
    if up_to_date(output, KIND, recipe):
        print((output / "report.txt").read_text(encoding="utf-8"), f"{output}: up to date", sep="\n")
        return 0
    evaluate(plan)
    from infra.report.page import as_html, as_page, sections  # imports what an evaluation imports, as the next
    from infra.report.report import report_of

    report = report_of(plan, MEASURES, deciding=options.measure, num_timed=options.timed)
    files = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        "report.txt": as_page(report),
        "report.html": as_html(sections(report)),
    }
    (output / MANIFEST).unlink(missing_ok=True)
    for name, text in files.items():
        atomic_write(output / name, text)
    entries = [file_entry(output, name) for name in files]
    write_manifest(output, kind=KIND, files=entries, recipe=recipe, counts={"questions": len(plan.questions)})
    print(files["report.txt"], f"{output}: report.txt, report.html, report.json", sep="\n")
    return 0


if __name__ == "__main__":
    command_line(main)
