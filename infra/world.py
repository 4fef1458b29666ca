"""Retrieval that learns from answers alone: a small world, from nothing to a table of results.

    python -m infra.world --output DIR [--seed N …] [--control] [--shuffled] [--straight-through] [--without-paraphrase]
        [--slot-mean] [--set world.train=N] [--set joint.steps=N]

Similarity misleads in this world (see pipelines/world/command.py). Recall@1 in pools of 20 rises from about 0 to the
figure in DIR/report.md. Two controls can run beside it and must not improve: the same training with the gradient from
the answer to the scores cut, and with the answers shuffled among the questions. --straight-through and
--without-paraphrase show what else was tried. --slot-mean ranks by the centred mean over the memory tokens instead of
the published score.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.config.flags import Command, add_setting, as_sets, touches
from clara.config.load import load
from clara.errors import command_line
from clara.storage.folders import atomic_write
from clara.storage.manifest import versions
from infra.steps import PASSED_ON, ROOT, centred_slot_mean, for_stage, module, relative, run_together, shown, training

CONFIG = relative(ROOT / "infra" / "configs" / "world.toml")
USED = (*PASSED_ON, "world")
"""Sections that the commands of a world use."""
SPLITS = ("unseen", "unseen_wording")
REPORT = "report.json"
# Joint runs beside the one that the configuration describes: from the same start, with these overrides.
BESIDE = {
    "control": ["joint.cut_gradient=true"],
    "shuffled": ["joint.shuffle_answers=true"],
    "straight_through": ["joint.answer_weight=1", "joint.utility_weight=0", "joint.steps=400"],
}
# A mean over the slots distinguishes rows less sharply: at half the temperature and with more, smaller steps (3,120
# questions in place of 3,200) it gets where the published score does.
SLOT_MEAN = ("joint.temperature=0.05", "joint.steps=130", "joint.questions_per_step=24", "joint.micro_batch=24")
LABELS = {
    "after": "answer's gradient",
    "control": "gradient cut",
    "shuffled": "answers shuffled",
    "straight_through": "straight-through alone",
}


class World:
    """Paths and commands of one seed."""

    def __init__(
        self,
        output: Path,
        seed: int,
        beside: Sequence[str],
        sets: Sequence[str] = (),
        *,
        config: str = CONFIG,
        slot_mean: bool = False,
    ) -> None:
        """Choose the folder, the runs and their settings.

        Args:
            output: folder of this seed.
            seed: of the world and of training.
            beside: names in `BESIDE`, trained beside the run that the configuration describes.
            sets: overrides of the configuration, of the stages and of section `world`.
            config: file of the configuration.
            slot_mean: rank by the centred slot mean instead of the published score.
        """
        self.start = "scored" if slot_mean else "instruct/checkpoint"
        self.output, self.seed, self.beside, self.config = output, seed, beside, config
        self.sets = [*(SLOT_MEAN if slot_mean else ()), *sets]

    def path(self, name: str) -> str:
        """A path inside this world."""
        return str(self.output / name)

    @property
    def joint_runs(self) -> dict[str, list[str]]:
        """Name of each joint run, with its overrides."""
        return {"after": []} | {name: BESIDE[name] for name in self.beside}

    def preparation(self) -> dict[str, list[str]]:
        """The commands before joint training, by name, in order."""
        corpus, questions = self.path("world/corpus.jsonl"), self.path("world/questions")
        of_world = [value for value in self.sets if touches(value.partition("=")[0], {"world"})]
        steps = {
            "world": module("pipelines.world", output=self.path("world"), seed=self.seed, set=of_world),
            "pretrain": self._train(
                "pretrain",
                "pretrain",
                "stage=pretrain",
                f"examples={self.path('world/examples')}",
                f"backbone.path={self.path('world/backbone')}",
            ),
            "instruct": self._train(
                "pretrain",
                "instruct",
                "stage=instruct",
                f"checkpoint={self.path('pretrain/checkpoint')}",
                f"questions={questions}",
                f"corpus={corpus}",
            ),
            "memory": module(
                "pipelines.build_memory",
                input=corpus,
                checkpoint=self.path("instruct/checkpoint"),
                output=self.path("memory"),
                dtype=load(self.config, self.sets).backbone.dtype,
                num_shards=4,
            ),
        }
        if self.start == "scored":
            steps["score"] = centred_slot_mean(
                checkpoint=self.path("instruct/checkpoint"),
                questions=questions,
                split="train",
                output=self.path(self.start),
            )
        return steps

    def joint(self, name: str) -> list[str]:
        """The joint stage under one of the names of `joint_runs`."""
        inputs = [f"{kind}={path}" for kind, path in self.inputs().items()]
        return self._train("joint", name, "stage=joint", *inputs, own=self.joint_runs[name])

    def inputs(self) -> dict[str, str]:
        """What joint training begins from."""
        return {
            "checkpoint": self.path(self.start),
            "questions": self.path("world/questions"),
            "memory": self.path("memory"),
        }

    def evaluation(self) -> list[str]:
        """All checkpoints on both held-out splits, beside BM25."""
        systems = {"start": self.start} | {name: f"{name}/checkpoint" for name in self.joint_runs}
        return module(
            "training.evaluate",
            questions=self.path("world/questions"),
            output=self.path("evaluation"),
            system=[f"{name}={self.path(path)},{self.path('memory')}" for name, path in systems.items()],
            baselines="bm25",
            splits=",".join(SPLITS),
            num_selected=1,
            retrieval_only=True,
        )

    def steps(self) -> dict[str, list[list[str]]]:
        """All commands by step, in order. Commands of one step run at the same time."""
        return {
            **{name: [command] for name, command in self.preparation().items()},
            "joint": [self.joint(name) for name in self.joint_runs],
            "evaluate": [self.evaluation()],
        }

    def _train(self, program: str, name: str, *values: str, own: Sequence[str] = ()) -> list[str]:
        output = f"output={self.path(name)}"
        stage = next(value.partition("=")[2] for value in values if value.startswith("stage="))
        return training(program, self.config, f"seed={self.seed}", output, *values, *for_stage(stage, self.sets), *own)


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
    """Run the commands of one world.

    Returns:
        What was measured: Recall@1 with its interval by system and split, Recall@1 by step, seconds by step.
    """
    seconds = {name: run_together(commands, f"step {name}") for name, commands in world.steps().items()}
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


def parser() -> Command:
    """The command line."""
    found = Command("infra.world", __doc__, uses=USED, config=CONFIG)
    add = found.add_argument
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="gets seed-N/ for each seed, report.md, report.json, learning.png",
    )
    add("--seed", type=int, nargs="+", default=[0], metavar="N", help="worlds to make (default 0)")
    add("--control", action="store_true", help="also train with the gradient from the answer to the scores cut")
    add("--shuffled", action="store_true", help="also train with the answers shuffled among the questions")
    add(
        "--straight-through",
        action="store_true",
        help="also train by the straight-through top-k alone, four times as long",
    )
    add_setting(found, "world.paraphrase", "--without-paraphrase")
    add("--slot-mean", action="store_true", help="rank by the centred mean over the memory tokens (model.score)")
    add("--dry-run", action="store_true", help="print the commands and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    output, sets = Path(options.output).absolute(), as_sets(options.overrides)
    beside = [name for name in BESIDE if getattr(options, name)]
    worlds = [
        World(output / f"seed-{seed}", seed, beside, sets, config=options.config_file, slot_mean=options.slot_mean)
        for seed in options.seed
    ]
    if options.dry_run:
        for world in worlds:
            for commands in world.steps().values():
                print("\n".join(map(shown, commands)))
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
