"""Compare systems on the same questions and pools: what they find, their answers, and the likelihood of the right one.

python -m training.evaluate --questions DIR --output DIR --system NAME=CHECKPOINT,MEMORY[,INDEX] [--system …]
[--baselines bm25,dense,text]

Rows are called RETRIEVER/GENERATOR: `after` is a system as it is, `bm25/after` its generator on what BM25 found,
`text/bm25` the plain LM on the raw passages that BM25 found. With --cross there are also `before/after` and
`after/before`, so that no gain is credited twice.
"""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.config.tree import Config, Retrieval
from clara.data.questions import Question, read_questions
from clara.errors import InputError, command_line
from clara.storage.artefact import Artefact
from clara.storage.manifest import (
    MANIFEST,
    file_entry,
    hash_of,
    make_directory,
    manifest_hash,
    up_to_date,
    write_manifest,
)
from clara.storage.paths import require_local
from training.evaluation.checks import check_dense, retrieval_of, settings_of
from training.evaluation.systems import Settings, SystemPaths, questions_hash
from training.registry.resolve import local_checkpoint

if TYPE_CHECKING:
    from training.evaluation.report import Evaluation

KIND = "EVALUATION"
logger = logging.getLogger(__name__)


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("training.evaluate", __doc__)
    add_setting(parser, "questions", metavar="DIR", required=True)
    add_setting(parser, "output", metavar="DIR", required=True)
    system = "NAME=CHECKPOINT,MEMORY[,INDEX]"
    add_setting(parser, "evaluation.systems", "--system", metavar=system, required=True, adds=True)
    add_setting(parser, "evaluation.baselines")
    add_dense_settings(parser, "evaluation.dense_model")
    add_setting(parser, "retrieval.exact_rows")
    add_setting(parser, "evaluation.cross")
    add_setting(parser, "evaluation.num_aligned", "--alignment")
    add_setting(parser, "evaluation.num_timed", "--timed")
    add_setting(parser, "evaluation.splits")
    add_setting(parser, "evaluation.limit")
    add_setting(parser, "backbone.path", "--backbone", metavar="DIR")
    add_setting(parser, "evaluation.pool_size")
    add_setting(parser, "evaluation.num_selected", metavar="K")
    add_setting(parser, "evaluation.num_generated", "--generate")
    for name in ("conditions", "generate_conditions", "retrieval_only", "max_new_tokens"):
        add_setting(parser, f"evaluation.{name}")
    add_setting(parser, "evaluation.accept_stale", metavar="NAME", adds=True)
    add_setting(parser, "evaluation.verify")
    add_setting(parser, "device")
    add_setting(parser, "seed")
    add_setting(parser, "tracking.uri", "--tracking-uri", metavar="URI")
    add_setting(parser, "tracking.experiment")
    parser.add_argument("--dry-run", action="store_true", help="print what would be evaluated, and stop")
    return parser


def chosen_questions(directory: str, splits: Sequence[str], limit: int, *, answers: bool = True) -> list[Question]:
    """Questions of the splits, at most `limit` of each: those whose ids hash lowest, so that a larger limit only adds.

    Raises:
        InputError: a split is empty, or a question has no answer and `answers` says that it needs one.
    """
    names = [None] if list(splits) == ["all"] else list(splits)
    every = read_questions(directory, answers=answers)
    there = {q.split for q in every}
    for name in names:
        if name is not None and name not in there:
            raise InputError(
                f"--splits {','.join(splits)}: {directory}: no question with split {name!r}; "
                f"there are {', '.join(sorted(repr(s) for s in there))}; "
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


def dense_counts(dense: Retrieval) -> dict[str, str]:
    """For the report: what the embedding model gets in front of questions and of texts.

    A model that is trained with prompts and has none is worse than it could be, which is logged.
    """
    from clara.index.dense_model import is_endpoint, prompts_of
    from clara.index.model_folder import wants_prompts

    if not dense.dense_model:
        return {}
    question, text = prompts_of(dense)
    if not (question or text) and wants_prompts(dense.dense_name if is_endpoint(dense) else dense.dense_model):
        logger.warning(
            "--dense-model %s: has no prompts, and models of this family are trained with some; give those of its card "
            'with --dense-prompts, as --dense-prompts "query: " "passage: "',
            dense.dense_model,
        )
    shown = {"questions": question, "texts": text}
    return {f"dense: prompt of {what}": repr(prompt) if prompt else "none" for what, prompt in shown.items()}


@dataclass(frozen=True)
class Planned:
    """An evaluation whose input has been checked.

    Attributes:
        config: `output` is the EVALUATION.
        systems: with the folders of their CHECKPOINTs.
        settings: what is done with each.
        questions: what they are asked.
        recipe: what determines the figures.
    """

    config: Config
    systems: Sequence[SystemPaths]
    settings: Settings
    questions: Sequence[Question]
    recipe: dict[str, Any]


def planned(config: Config, systems: Sequence[SystemPaths]) -> Planned:
    """Check what is to be evaluated; nothing is written.

    Raises:
        InputError: an artefact is missing or damaged, or settings exclude each other.
    """
    require_local("--output", config.output)
    section, names = config.evaluation, [s.name for s in systems]
    if len(set(names)) != len(names):
        raise InputError(f"--system: names {names}; give each system its own")
    for name in section.accept_stale:
        if name not in names:
            raise InputError(f"--accept-stale {name!r}: no such system; there are {', '.join(names)}")
    systems = [dataclasses.replace(s, checkpoint=local_checkpoint(s.checkpoint, config.tracking.uri)) for s in systems]
    check_dense(section, systems)
    settings = settings_of(section, retrieval_of(config))
    answers = not settings.retrieval_only
    questions = chosen_questions(config.questions, section.splits, section.limit, answers=answers)
    recipe = {
        "questions": questions_hash(questions),
        "systems": {s.name: s.hashes() | {"stale": s.name in section.accept_stale} for s in systems},
        "settings": settings.plan(),
        "seed": config.seed,
    }
    return Planned(config, systems, settings, questions, recipe)


def evaluate(plan: Planned) -> "Evaluation | None":
    """Measure all systems and write the EVALUATION; None: it is there already."""
    config, output, systems = plan.config, Path(plan.config.output), plan.systems
    if up_to_date(output, KIND, plan.recipe):
        print(f"{output}: up to date")
        return None
    (make_directory(output) / MANIFEST).unlink(missing_ok=True)
    if config.evaluation.verify:
        for memory in dict.fromkeys(system.memory for system in systems):
            Artefact.open(memory, "MEMORY", verify=True)
    from training.evaluation.report import Evaluation, write_report  # imports torch, as the next
    from training.evaluation.run import EvaluationRun, compared_pairs

    names = [system.name for system in systems]
    measuring = EvaluationRun(
        systems=systems,
        questions=plan.questions,
        settings=plan.settings,
        output=output,
        backbone=config.backbone.path,
        stale=config.evaluation.accept_stale,
        retrieval=retrieval_of(config),
        device=config.device,
    )
    rows, absent = measuring.rows()
    splits = Counter(q.split for q in plan.questions)
    counts: dict[str, Any] = {f"questions, split {k or 'none'}": v for k, v in splits.items()} | absent
    counts |= dense_counts(retrieval_of(config))
    evaluation = Evaluation(rows, compared_pairs(names, rows), counts, names, config.seed)
    files = write_report(output, evaluation)
    write_manifest(
        output,
        kind=KIND,
        files=[file_entry(output, f) for f in files],
        recipe=plan.recipe,
        counts=counts,
        systems=plan.recipe["systems"],
        questions={
            "path": str(config.questions),
            "hash": plan.recipe["questions"],
            "manifest": manifest_hash(config.questions),
        },
    )
    return evaluation


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    plan = planned(options.config, [SystemPaths.parse(text) for text in options.system])
    if options.dry_run:
        print(json.dumps(plan.recipe | {"number of questions": Counter(q.split for q in plan.questions)}, indent=1))
        return 0
    output = Path(options.output)
    if (evaluation := evaluate(plan)) is not None:
        print_tables(evaluation)
        print(f"\n{output}: report.md, report.html, report.json")
    if options.tracking_uri:
        from training.registry.evaluation_log import track

        track(output, options.tracking_uri, options.experiment)
    return 0


def print_tables(evaluation: "Evaluation") -> None:
    """The table of each split on the terminal."""
    from training.evaluation.tables import as_text, figure_table

    for split, of in evaluation.figures().items():
        print(
            f"\n{split or 'all questions'}: means (intervals and paired differences in the report; "
            "log-likelihoods in nats an answer)"
        )
        print(as_text(figure_table(of, interval=False)))


if __name__ == "__main__":
    command_line(main)
