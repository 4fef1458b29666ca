"""See retrieval learn from answers alone: the small world from nothing to a table, with the commands that a user types.

    python -m infra.world --output DIR [--seed N …] [--control] [--shuffled] [--straight-through] [--without-paraphrase]

Where looking alike misleads (see pipelines/world/command.py), Recall@1 in pools of 20 goes from about 0 to what
DIR/report.md says. Two controls can run beside it, which have to stay where they started: the same training with the
gradient from the answer to the scores cut, and with the answers shuffled among the questions. The other two options
show what else was tried.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.errors import InputError, command_line
from clara.storage.artefact import atomic_write, versions

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "infra" / "configs" / "world.toml")
SPLITS = ("unseen", "unseen_wording")
REPORT = "report.json"
# Joint runs beside the one that the configuration describes, each from the same start, and what each sets.
BESIDE = {
    "control": ["joint.cut_gradient=true"],
    "shuffled": ["joint.shuffle_answers=true"],
    "straight_through": ["joint.answer_weight=1", "joint.utility_weight=0", "joint.steps=400"],
}
LABELS = {
    "after": "answer's gradient",
    "control": "gradient cut",
    "shuffled": "answers shuffled",
    "straight_through": "straight-through alone",
}


class World:
    """Paths and commands of one seed."""

    def __init__(
        self, output: Path, seed: int, beside: Sequence[str], sets: Sequence[str] = (), *, paraphrase: bool = True
    ) -> None:
        self.output, self.seed, self.beside, self.sets, self.paraphrase = output, seed, beside, list(sets), paraphrase

    def path(self, name: str) -> str:
        """A path inside this world."""
        return str(self.output / name)

    @property
    def joint_runs(self) -> dict[str, list[str]]:
        """Name of each joint run and what it sets."""
        return {"after": []} | {name: BESIDE[name] for name in self.beside}

    def commands(self) -> dict[str, list[str]]:
        """What comes before joint training, by name, in order."""
        start, corpus = self.path("instruct/checkpoint"), self.path("world/corpus.jsonl")
        return {
            "world": [
                sys.executable,
                "-m",
                "pipelines.world",
                "--output",
                self.path("world"),
                "--seed",
                str(self.seed),
                *([] if self.paraphrase else ["--without-paraphrase"]),
            ],
            "pretrain": self._stage(
                "pretrain",
                stage="pretrain",
                examples=self.path("world/examples"),
                **{"backbone.path": self.path("world/backbone")},
            ),
            "instruct": self._stage(
                "instruct",
                stage="instruct",
                checkpoint=self.path("pretrain/checkpoint"),
                questions=self.path("world/questions"),
                corpus=corpus,
            ),
            "memory": [
                sys.executable,
                "-m",
                "pipelines.build_memory",
                "--input",
                corpus,
                "--checkpoint",
                start,
                "--output",
                self.path("memory"),
                "--dtype",
                "float32",
                "--num-shards",
                "4",
            ],
        }

    def joint(self, name: str) -> list[str]:
        """The joint stage under one of the names of `joint_runs`."""
        own = [part for override in self.joint_runs[name] for part in ("--set", override)]
        inputs = {
            "checkpoint": self.path("instruct/checkpoint"),
            "questions": self.path("world/questions"),
            "memory": self.path("memory"),
        }
        return [*self._stage(name, program="training/joint.py", stage="joint", **inputs), *own]

    def evaluation(self) -> list[str]:
        """All checkpoints on both held-out splits, beside BM25."""
        systems = {"start": self.path("instruct/checkpoint")} | {
            name: self.path(f"{name}/checkpoint") for name in self.joint_runs
        }
        named = [
            part
            for name, checkpoint in systems.items()
            for part in ("--system", f"{name}={checkpoint},{self.path('memory')}")
        ]
        return [
            sys.executable,
            "-m",
            "training.evaluate",
            "--questions",
            self.path("world/questions"),
            "--output",
            self.path("evaluation"),
            *named,
            "--baselines",
            "bm25",
            "--splits",
            ",".join(SPLITS),
            "--num-selected",
            "1",
            "--retrieval-only",
        ]

    def _stage(self, name: str, *, program: str = "training/pretrain.py", **keys: str) -> list[str]:
        values = {"seed": str(self.seed), "output": self.path(name)} | keys
        sets = [f"{key}={value}" for key, value in values.items()] + self.sets
        return [sys.executable, str(ROOT / program), "--config", CONFIG, *(part for s in sets for part in ("--set", s))]


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run commands beside each other and wait for all.

    Raises:
        InputError: one of them failed; its own message stands above.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in commands:
        print(f"  $ {shlex.join(['python' if part == sys.executable else part for part in command])}", flush=True)
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise InputError(
            f"the world's commands ended with status {statuses}; their messages are above. Run the same command again to go on from here"
        )


def recall_by_step(metrics: Path, width: int = 10) -> list[tuple[int, float]]:
    """Recall@1 in the pools of training questions, mean over spans of `width` steps, from a run's `metrics.jsonl`."""
    values = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        values[int(row["step"])] = float(row["positive_first"])
    steps = sorted(values)
    spans = [steps[i : i + width] for i in range(0, len(steps), width)]
    return [(span[-1], sum(values[s] for s in span) / len(span)) for span in spans]


def draw(curves: Mapping[str, Sequence[tuple[int, float]]], target: Path) -> None:
    """A picture of Recall@1 by step."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=LABELS.get(name, name))
    axes.set(xlabel="step", ylabel="Recall@1 of training questions", ylim=(-0.02, 1.02))
    axes.legend()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def make(world: World) -> dict[str, Any]:
    """Run one world's commands, and return what was measured: Recall@1 with its interval by system and split, curves, seconds."""
    seconds: dict[str, float] = {}
    for name, together in (
        *((name, [command]) for name, command in world.commands().items()),
        ("joint", [world.joint(name) for name in world.joint_runs]),
        ("evaluate", [world.evaluation()]),
    ):
        began = time.monotonic()
        run_all(together)
        seconds[name] = time.monotonic() - began
    report = json.loads((world.output / "evaluation" / "report.json").read_text(encoding="utf-8"))
    runs = {
        name: json.loads((world.output / name / "report.json").read_text(encoding="utf-8"))["run"]
        for name in world.joint_runs
    }
    systems = {name: found for name, found in report["systems"].items() if name in ("start", *world.joint_runs)}
    systems = {"BM25": report["systems"]["bm25/start"]} | systems
    return {
        "seed": world.seed,
        "recall_at_1": {name: {split: of[split]["pool.recall@1"] for split in SPLITS} for name, of in systems.items()},
        "by_step": {name: recall_by_step(world.output / name / run / "metrics.jsonl") for name, run in runs.items()},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of all seeds: Recall@1 with its 95 % bootstrap interval."""
    lines = [
        "| seed | system | Recall@1, new names | Recall@1, new names in new wordings |",
        "|---|---|---|---|",
    ]
    for result in results:
        for system, values in result["recall_at_1"].items():
            cells = [f"{values[s]['value']:.3f} [{values[s]['low']:.3f}, {values[s]['high']:.3f}]" for s in SPLITS]
            lines.append(f"| {result['seed']} | {system} | {' | '.join(cells)} |")
    spent = "; ".join(f"seed {r['seed']}: {sum(r['seconds'].values()):.0f}" for r in results)
    return "\n".join(
        ["# Retrieval learned from answers alone, in a small world", "", *lines, "", f"Seconds in all, {spent}.", ""]
    )


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="gets seed-N/ for each seed, report.md, report.json, learning.png",
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N", help="worlds to make (default 0)")
    parser.add_argument(
        "--control", action="store_true", help="also train with the gradient from the answer to the scores cut"
    )
    parser.add_argument(
        "--shuffled", action="store_true", help="also train with the answers shuffled among the questions"
    )
    parser.add_argument(
        "--straight-through",
        action="store_true",
        help="also train by the straight-through top-k alone, four times as long",
    )
    parser.add_argument(
        "--without-paraphrase", action="store_true", help="the ablation: a compressor pretrained on answers alone"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of infra/configs/world.toml; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(argv)
    output = Path(options.output).absolute()
    beside = [name for name in BESIDE if getattr(options, name)]
    paraphrase = not options.without_paraphrase
    worlds = [World(output / f"seed-{seed}", seed, beside, options.set, paraphrase=paraphrase) for seed in options.seed]
    if options.dry_run:
        for world in worlds:
            for command in (*world.commands().values(), *map(world.joint, world.joint_runs), world.evaluation()):
                print(shlex.join(["python" if part == sys.executable else part for part in command]))
        return 0
    results = [make(world) for world in worlds]
    atomic_write(
        output / REPORT, json.dumps({"command": argv, "versions": versions(), "worlds": results}, indent=1) + "\n"
    )
    draw(results[0]["by_step"], output / "learning.png")
    text = markdown(results)
    atomic_write(output / "report.md", text)
    print(f"\n{text}\n{output}: report.md, report.json, learning.png")
    return 0


if __name__ == "__main__":
    command_line(main)
