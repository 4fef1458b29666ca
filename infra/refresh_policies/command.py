"""Compare refresh policies: what keeps MEMORY close to a compressor that trains, and what that costs.

    python -m infra.refresh_policies --output DIR [--policies none,full,…] [--steps N] [--set KEY=VALUE …]
    python -m infra.refresh_policies --output DIR --config FILE --inputs
    checkpoint=DIR,questions=DIR,memory=DIR,index=DIR …

Policies: no refresh, re-ranking, refreshes beside training of all or of some rows, and training that waits for them.
Without --inputs they run in the small world (pipelines/world/command.py), whose compressor moves so fast that stored
memory is stale within tens of steps. Each policy is one run of `training/joint.py` in one process, one after the other,
from the same start, for each seed; a refresh beside training runs in another process. Writes results.json, results.md
(mean and range over the seeds) and curves.png, and keeps finished runs: the same command resumes from them.
"""

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.config.flags import Command, add_setting, as_sets
from clara.config.load import load
from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import versions
from infra.hardware import processor
from infra.refresh_policies.figures import compare, draw, markdown
from infra.steps import for_stage, run_together, shown, training
from infra.world import CONFIG, USED, World

# What each run begins with over the configuration's file; flags and --set win.
DEFAULTS = {
    "joint.steps": 60,
    "joint.refresh.every_steps": 10,
    "joint.refresh.share": 0.25,
    "joint.refresh.canary_every": 10,
    "joint.refresh.canary_rows": 32,
}
_REFRESH = ("joint.refresh.policy=full", "joint.refresh.every_steps={every}", "joint.refresh.start_step={every}")
# Of those, what the policies that read it alone get.
_OF_POLICIES = {"joint.refresh.every_steps", "joint.refresh.share"}
# Whatever the configuration says of refreshes, each run begins from here.
_NONE = (
    "joint.refresh.policy=none",
    "joint.refresh.switch=asap",
    "joint.refresh.rerank=false",
    "joint.refresh.final=false",
)
# What each run sets; {every} and {share} are what `DEFAULTS`, flags and --set say.
POLICIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "rerank": ("joint.refresh.rerank=true",),
    "full": _REFRESH,
    "incremental": (*_REFRESH, "joint.refresh.policy=incremental", "joint.refresh.share={share}"),
    "incremental+rerank": (
        *_REFRESH,
        "joint.refresh.policy=incremental",
        "joint.refresh.share={share}",
        "joint.refresh.rerank=true",
        "joint.refresh.rerank_lag_steps={every}",
    ),
    "stop": (*_REFRESH, "joint.refresh.switch=stop"),
}
SHOWN = ("none", "rerank", "full", "incremental", "stop")
# The small world: everything trains, the compressor faster than the rest, so that what is stored falls behind.
SMALL_WORLD = (
    "joint.train_compressor=true",
    "joint.train_generator=true",
    "joint.answer_weight=1",
    "joint.utility_weight=1",
    "joint.optimiser.schedule=constant",
    "joint.learning_rates={compressor = 1e-2, generator = 2e-3, query_reasoner = 2e-3}",
    "joint.evaluate_every=10",
    "joint.evaluate_questions=32",
    "joint.evaluate_fresh=true",
    "world.train=200",
    "world.held_out=60",
)


def overrides(options: argparse.Namespace) -> list[str]:
    """What all runs set, the command line's last."""
    own = () if options.inputs else SMALL_WORLD
    return [*own, *(f"{key}={value}" for key, value in DEFAULTS.items()), *as_sets(options.overrides)]


def run_command(
    output: Path, policy: str, seed: int, options: argparse.Namespace, inputs: Mapping[str, str]
) -> list[str]:
    """The joint run of one policy."""
    sets = overrides(options)
    refresh = load(options.config_file, sets).joint.refresh
    return training(
        "joint",
        options.config_file,
        f"seed={seed}",
        "stage=joint",
        *(f"{name}={path}" for name, path in inputs.items()),
        f"output={output / policy}",
        *(value for value in for_stage("joint", sets) if value.partition("=")[0] not in _OF_POLICIES),
        *_NONE,
        *(part.format(every=refresh.every_steps, share=refresh.share) for part in POLICIES[policy]),
        launcher="local",
    )


def read_run(folder: Path) -> dict[str, Any]:
    """Report and figures by step of a finished run."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    lines = (folder / report["run"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = {int(row.pop("step")): row for row in map(json.loads, lines)}
    return {"report": report, "metrics": dict(sorted(metrics.items()))}


def parser() -> Command:
    """The command line's arguments."""
    found = Command("infra.refresh_policies", __doc__, uses=USED, config=CONFIG)
    add = found.add_argument
    add("--output", required=True, metavar="DIR", help="gets the world, a run for each policy, and the results")
    add("--policies", default=",".join(SHOWN), help=f"comma-separated, of {', '.join(POLICIES)} (default %(default)s)")
    for key, flag in (("steps", ""), ("refresh.every_steps", "--every"), ("refresh.share", "")):
        add_setting(found, f"joint.{key}", flag, note=f"here {DEFAULTS[f'joint.{key}']}")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="of the world and of training; each gets separate runs (default: 0)",
    )
    add(
        "--inputs",
        default="",
        metavar="NAME=DIR,…",
        help="checkpoint, questions, memory, index to train on instead of the small world",
    )
    add("--dry-run", action="store_true", help="print the commands and stop")
    return found


def chosen_policies(text: str) -> list[str]:
    """The policies of the command line.

    Raises:
        InputError: one of them is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        raise InputError(f"--policies {text!r}: expected some of {', '.join(POLICIES)}")
    return names


def commands_of(output: Path, seed: int, policies: Sequence[str], options: argparse.Namespace) -> list[list[str]]:
    """Everything that one seed takes."""
    world = World(output, seed, (), overrides(options), config=options.config_file)
    given = dict(part.split("=", 1) for part in options.inputs.split(",") if "=" in part)
    before = [] if options.inputs else world.preparation().values()
    inputs = given if options.inputs else world.inputs()
    return [*before, *(run_command(output, policy, seed, options, inputs) for policy in policies)]


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    policies, output = chosen_policies(options.policies), Path(options.output).absolute()
    folders = {seed: output / f"seed-{seed}" for seed in options.seeds}
    commands = [command for seed, folder in folders.items() for command in commands_of(folder, seed, policies, options)]
    if options.dry_run:
        for command in commands:
            print(shown(command))
        return 0
    load = []
    for command in commands:
        run_together([command], "the last command")
        load.append(round(os.getloadavg()[0], 1))
    runs = {seed: {policy: read_run(folder / policy) for policy in policies} for seed, folder in folders.items()}
    result = {
        "command": shlex.join(["python", "-m", "infra.refresh_policies", *argv]),
        "versions": versions(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average_after_each_command": load,
        "by_seed": {str(seed): compare(found) for seed, found in runs.items()},
    }
    atomic_write(output / "results.json", json.dumps(result, indent=1) + "\n")
    atomic_write(output / "results.md", markdown(result))
    draw({policy: [found[policy]["metrics"] for found in runs.values()] for policy in policies}, output / "curves.png")
    print(f"\n{(output / 'results.md').read_text(encoding='utf-8')}\n{output}: results.md, results.json, curves.png")
    return 0
