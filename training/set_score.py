"""A CHECKPOINT with the same weights and another score, whose questions' mean is that of unlabelled questions.

python -m training.set_score --checkpoint DIR --questions DIR --pooling slot_mean --centred --output DIR

The questions should be of the kind that will be asked: their mean is what is subtracted from each of them. Sixteen are
enough. Answers and positives are not read. Without --centred no questions are needed, nor if the checkpoint's score is
centred already: its mean is kept.

Geometry and weights of the fused score that are not given stay as they are; a weight is given with
--set model.fusion.weights.bm25=0.2.
"""

from typing import Any

from clara.config.flags import Command, add_setting
from clara.config.model import Model
from clara.data.questions import evenly, read_questions
from clara.errors import InputError, command_line
from clara.storage.manifest import manifest_hash, read_manifest, up_to_date
from clara.storage.paths import require_local


def parser() -> Command:
    """The command line's arguments."""
    found = Command("training.set_score", __doc__, uses=["model.fusion"])
    add_setting(found, "checkpoint", metavar="DIR", required=True)
    add_setting(found, "questions", metavar="DIR")
    add_setting(found, "output", metavar="DIR", required=True)
    add_setting(found, "model.score.pooling", "--pooling")
    add_setting(found, "model.score.centred", "--centred")
    add_setting(found, "model.question_keeps", "--question-keeps")
    add_setting(found, "backbone.path", "--backbone", metavar="DIR")
    add_setting(found, "backbone.dtype", "--dtype")
    add_setting(found, "device")
    found.add_argument("--split", default="", help="only questions of this split (default: all)")
    found.add_argument("--limit", type=int, default=256, help="most questions, evenly spread (default: 256)")
    found.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    config, given = options.config, options.config.model.model_fields_set
    require_local("output", options.output)
    if options.limit < 1:
        raise InputError(f"--limit {options.limit}: expected 1 question or more")
    if not given & {"score", "fusion", "question_keeps"}:
        raise InputError(
            "nothing to set: give --pooling, --centred, --question-keeps, or --set model.fusion.weights.NAME=WEIGHT"
        )
    held = Model.model_validate(read_manifest(options.checkpoint, "CHECKPOINT")["model"])
    score = config.model.score if "score" in given else held.score
    if score.centred and not options.questions and not held.score.centred:
        raise InputError("--centred: needs the mean of some questions; give QUESTIONS with --questions DIR")
    recipe: dict[str, Any] = {"job": "set_score", "checkpoint": manifest_hash(options.checkpoint)}
    recipe["score"] = score.model_dump()
    if "fusion" in given:
        recipe["fusion"] = config.model.fusion.model_dump()
    keeps = config.model.question_keeps if "question_keeps" in given else None
    if keeps:
        recipe["question_keeps"] = keeps
    computed = score.centred and bool(options.questions)
    if computed:
        recipe |= {"questions": manifest_hash(options.questions), "split": options.split, "limit": options.limit}
    if options.dry_run:
        print(recipe)
        return 0
    if up_to_date(options.output, "CHECKPOINT", recipe):
        print(f"{options.output}: up to date")
        return 0
    from clara.model.artefact import Checkpoint  # imports torch, as the others
    from clara.model.checkpoint import load_checkpoint
    from clara.model.question_mean import copy_with_score, mean_query

    checkpoint, mean = Checkpoint.open(options.checkpoint, verify=True), None
    if computed:
        questions = [q.question for q in read_questions(options.questions, options.split or None, answers=False)]
        chosen = evenly(questions, options.limit)
        mean = mean_query(load_checkpoint(checkpoint, config.backbone, device=options.device).eval(), chosen)
    fusion = config.model.fusion if "fusion" in given else None
    copy_with_score(checkpoint, options.output, score, mean, fusion=fusion, question_keeps=keeps, recipe=recipe)
    print(f"{options.output}: CHECKPOINT with score {score}")
    return 0


if __name__ == "__main__":
    command_line(main)
