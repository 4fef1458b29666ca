"""Evidence on published questions: reading from memory, and retrieval learned from answers, with controls.

    python -m infra.evidence --data DIR --output DIR [--backbone MODEL_FOLDER] [--dense-model FOLDER] [--only NAME …]
    [--quick]

Every step is a command that a user types; it is printed before it runs, and takes no time if its artefact exists and is
unchanged, so that an interrupted run resumes. The last step writes OUTPUT/results: evidence.json, evidence.md and
pictures (see infra/evidence/report.py).

Joint training, each from the same start and for as many steps, the query reasoner alone:
  joint     towards each candidate's answer likelihood, scored once (`utility`); no label enters the loss
  live      as `joint`, but every candidate is scored in the step; as many steps as cost what `joint` with scoring costs
  labels    multi-positive InfoNCE on the annotated supporting paragraphs
  answer    straight-through top-k and the answer's loss, from where `joint` ended
  cut       as `joint`, no gradient from the answer to the scores (control); nothing else trains, so two steps suffice
  shuffled  as `joint`, with the answers exchanged among the training questions before they are scored (control)
"""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path

from clara.config.flags import Command, add_setting, as_sets
from clara.errors import InputError
from clara.storage.folders import atomic_write
from infra.evidence.steps import CONFIG, QUICK, TRAINED, WHOLE, Evidence
from infra.steps import SHIPPED, STAGES, run_step, shown

SECONDS, COMMANDS = "seconds.json", "commands.json"


def fast_dtype() -> str:
    """The type that this machine's processor is fast at."""
    from clara.model.precision import multiplies_bfloat16

    return "bfloat16" if multiplies_bfloat16() else "float32"


def note_command(path: Path, argv: list[str], options: argparse.Namespace) -> None:
    """Add the command to those that made this run, with names for the folders of this machine."""
    folders = {
        options.data: "DATA",
        options.output: "RUN",
        options.backbone: "MODEL_FOLDER",
        options.dense_model: "DENSE_FOLDER",
    }
    typed = shlex.join(["python", "-m", "infra.evidence", *(folders.get(part, part) for part in argv)])
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    atomic_write(path, json.dumps([*(c for c in earlier if c != typed), typed], indent=1) + "\n")


def parser() -> Command:
    """The command line."""
    found = Command("infra.evidence", __doc__, uses=STAGES, config=CONFIG)
    add = found.add_argument
    add("--data", required=True, metavar="DIR", help="folder with 2wiki/, hotpotqa/, musique/ and scp/, as published")
    add_setting(found, "output", required=True, metavar="DIR")
    add_setting(found, "backbone.path", "--backbone", note="here SmolLM2-135M-Instruct, unpacked beside the output")
    add_setting(found, "checkpoint", "--start", note=f"stage pretrain continues from it; here {SHIPPED}")
    add_setting(found, "evaluation.dense_model", metavar="FOLDER", note="empty: without that baseline")
    add_setting(
        found, "backbone.dtype", optional=True, note="here bfloat16 where the processor has instructions for it"
    )
    add_setting(found, "engine.num_workers", "--workers")
    add(
        "--only",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the steps, these (default: all; --dry-run shows the names)",
    )
    add("--quick", action="store_true", help="the whole chain at a size that proves nothing, in minutes")
    add("--dry-run", action="store_true", help="print the commands by name and stop")
    add_setting(found, "evaluation.num_generated", "--generate", optional=True, note="here by the size")
    add(
        "--no-text",
        action="store_true",
        help="leave standard RAG out: the plain LM on raw passages, the dearest part of the evaluation",
    )
    add(
        "--systems",
        nargs="+",
        default=list(TRAINED),
        choices=TRAINED,
        help="what joint training makes (default: all); more can follow later",
    )
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    size = QUICK if options.quick else WHOLE
    if options.generate is not None:
        size = replace(size, generated=options.generate)
    evidence = Evidence(
        Path(options.data).absolute(),
        Path(options.output).absolute(),
        size,
        text=not options.no_text,
        backbone=options.backbone,
        dense=options.dense_model,
        start=options.start or SHIPPED,
        config=options.config_file,
        sets=tuple(as_sets(options.overrides)),
        workers=options.workers,
        dtype=options.dtype or fast_dtype(),
        systems=tuple(name for name in TRAINED if name in options.systems),
    )
    steps = evidence.steps()
    if unknown := [name for name in options.only if name not in steps]:
        raise InputError(f"--only {unknown[0]!r}: no such step; there are {', '.join(steps)}")
    chosen = {name: step for name, step in steps.items() if not options.only or name in options.only}
    if options.dry_run:
        print("\n".join(f"{name}: {shown(step.command)}" for name, step in chosen.items()))
        return 0
    evidence.output.mkdir(parents=True, exist_ok=True)
    note_command(evidence.output / COMMANDS, argv, options)
    record = evidence.output / SECONDS
    seconds: dict[str, float] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for number, (name, step) in enumerate(chosen.items(), 1):
        spent = run_step(step, number, len(chosen))
        # A step whose artefact is up to date takes seconds: the longest time is that of the work.
        seconds[name] = max(round(spent, 1), seconds.get(name, 0.0))
        atomic_write(record, json.dumps(seconds, indent=1) + "\n")
    return 0
