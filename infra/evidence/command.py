"""Evidence on published questions: reading from memory, retrieval learned from answers beside its controls and baselines, utility alignment.

    python -m infra.evidence --data DIR --output DIR [--backbone MODEL_FOLDER] [--dense-model FOLDER] [--only NAME …]
    [--quick]

Every step is a command that a user types; it is printed before it runs, and takes no time where its artefact is there
and unchanged, so that an interrupted run goes on. The last step writes OUTPUT/results: evidence.json, evidence.md and
pictures (see infra/evidence/report.py).

Joint training, each from the same start and for as many steps, the query reasoner alone:
  joint     drawn to each candidate's own answer likelihood, scored once (`utility`); no label enters the loss
  live      as `joint`, every candidate scored in the step, for as many steps as cost what scoring once and `joint` cost
  together labels    multi-positive InfoNCE on the annotated supporting paragraphs answer    straight-through top-k and
  the answer's loss, from where `joint` ended cut       as `joint`, no gradient from the answer to the scores (the
  control): as nothing else trains, two steps show that its weights are the start's shuffled  as `joint`, with the
  answers handed on among the training questions before they are scored (the other control)
"""

import argparse
import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from clara.errors import InputError
from clara.model.precision import multiplies_bfloat16
from clara.storage.artefact import atomic_write
from infra.evidence.data import SPLITS
from infra.steps import SHIPPED, Step, relative, run_step

CONFIG = "infra/configs/evidence.toml"
TRAINED = ("labels", "joint", "live", "answer", "cut", "shuffled")
"""Systems that joint training makes; `start` is what all of them but `answer` begin from."""
SECONDS, COMMANDS = "seconds.json", "commands.json"


@dataclass(frozen=True)
class Size:
    """How much is taken and done.

    Attributes:
        data: arguments of `infra.evidence.data`.
        generated: questions of each split that are answered in words.
        aligned: questions of each split whose utility alignment is measured.
        slots: numbers of memory tokens, fewer than the start's, that reading is also measured at.
        answer_steps: steps of system `answer`.
        live_steps: steps of system `live`: by the first run's seconds, scoring a question's ten candidates took as long
            as ten of the query reasoner's passes, so that 427 scored once and 2,160 passes are worth 73 steps of 8.
        overrides: of the configuration.
        slot_overrides: of the configuration, in the stages with fewer slots.
    """

    data: tuple[str, ...]
    generated: int
    aligned: int
    slots: tuple[int, ...]
    answer_steps: int = 24
    live_steps: int = 73
    overrides: tuple[str, ...] = ()
    slot_overrides: tuple[str, ...] = (
        "instruct.steps=16",
        "instruct.num_documents=1",
        "instruct.positives=first",
        "instruct.train_compressor=true",
        "instruct.train_memory_tokens=true",
    )


WHOLE = Size(
    (
        "--train-2wiki",
        "400",
        "--train-scp",
        "50",
        "--scp-each",
        "2",
        "--held-out-2wiki",
        "60",
        "--held-out-hotpotqa",
        "60",
        "--held-out-musique",
        "60",
        "--held-out-scp",
        "60",
    ),
    generated=20,
    aligned=20,
    slots=(8, 4),
    answer_steps=24,
)
QUICK = Size(
    (
        "--train-2wiki",
        "2",
        "--train-scp",
        "2",
        *(part for split in SPLITS for part in (f"--held-out-{split}", "2" if split == "scp" else "1")),
    ),
    generated=1,
    aligned=1,
    slots=(8,),
    answer_steps=1,
    live_steps=1,
    overrides=(
        "pretrain.steps=1",
        "pretrain.documents_per_step=2",
        "instruct.steps=1",
        "instruct.questions_per_step=2",
        "joint.steps=2",
        "joint.questions_per_step=4",
        "joint.micro_batch=4",
    ),
    slot_overrides=("instruct.num_documents=1", "instruct.positives=first", "instruct.train_compressor=true"),
)


class Evidence:
    """Paths of one run and the steps over them."""

    def __init__(
        self,
        data: Path,
        output: Path,
        size: Size,
        *,
        backbone: str = "",
        dense: str = "",
        start: str = SHIPPED,
        workers: int = 1,
        dtype: str = "",
        systems: tuple[str, ...] = TRAINED,
        text: bool = True,
    ) -> None:
        self.data, self.output, self.size, self.dense, self.start, self.workers = (
            data,
            output,
            size,
            dense,
            start,
            workers,
        )
        self.base = backbone or relative(output.parent / "base")
        self.unpack = not backbone
        self.systems = systems
        self.baselines = ["bm25", *["dense"] * bool(dense), *["text"] * text]
        self.dtype = dtype or ("bfloat16" if multiplies_bfloat16() else "float32")

    def path(self, name: str) -> str:
        """A path inside this run."""
        return relative(self.output / name)

    def steps(self) -> dict[str, Step]:
        """The commands by name, in order."""
        module = [sys.executable, "-m"]
        data = [
            *module,
            "infra.evidence.data",
            "--data",
            relative(self.data),
            "--output",
            self.path("data"),
            *self.size.data,
        ]
        report = [*module, "infra.evidence.report", "--run", self.path("."), "--output", self.path("results")]
        return {
            **(
                {"base": Step("Language model", [*module, "infra.demo.base_model", "--output", self.base])}
                if self.unpack
                else {}
            ),
            "data": Step("Questions and documents, split", data),
            "pretrain": Step(
                "Stage pretrain, on scp", self._stage("pretrain", "pretrain", self.start, examples="data/examples")
            ),
            "instruct": Step("Stage instruct", self._instruct("instruct", self.path("pretrain/checkpoint"))),
            "memory": Step("Compress: MEMORY", self._memory("instruct/checkpoint", "data/corpus.jsonl", "memory")),
            "index": Step(
                "Index",
                [*module, "pipelines.build_index", "--memory", self.path("memory"), "--output", self.path("index")],
            ),
            "utilities": Step("Score every candidate once", self._utilities("questions", "utilities")),
            **self._joint_runs(),
            "evaluate": Step("Evaluate: every system", self._evaluation()),
            "alignment": Step("Utility alignment, before and after", self._alignment()),
            **self._slots(),
            "report": Step("Report", report),
        }

    def _joint_runs(self) -> dict[str, Step]:
        """Joint training of the chosen systems, each with what it needs."""
        steps = {
            "joint": Step("Joint: by utility", self._joint("joint", utilities="utilities")),
            "live": Step(
                "Joint: by utility, scored in the step",
                self._joint("live", f"joint.steps={self.size.live_steps}", "joint.micro_batch=4"),
            ),
            "labels": Step(
                "Joint: by labels", self._joint("labels", "joint.labels_weight=1", "joint.utility_weight=0")
            ),
            "cut": Step(
                "Control: gradient cut",
                self._joint("cut", "joint.cut_gradient=true", "joint.steps=2", utilities="utilities"),
            ),
            "shuffled-utilities": Step(
                "Control: score with the answers handed on", self._utilities("shuffled", "shuffled-utilities")
            ),
            "shuffled": Step(
                "Control: answers handed on",
                self._joint("shuffled", questions="shuffled", utilities="shuffled-utilities"),
            ),
            "answer": Step("Joint: straight-through, from joint", self._straight_through()),
        }
        return {name: step for name, step in steps.items() if name.partition("-")[0] in self.systems}

    def _sets(self, *values: str) -> list[str]:
        given = (f"backbone.path={self.base}", f"backbone.dtype={self.dtype}", *self.size.overrides, *values)
        return ["--config", CONFIG, *(part for value in given for part in ("--set", value))]

    def _stage(self, stage: str, name: str, checkpoint: str, *values: str, **inputs: str) -> list[str]:
        given = [f"{key}={self.path(path)}" for key, path in inputs.items()]
        return [
            sys.executable,
            "training/pretrain.py",
            *self._sets(f"stage={stage}", f"checkpoint={checkpoint}", f"output={self.path(name)}", *given, *values),
        ]

    def _instruct(self, name: str, checkpoint: str, *values: str) -> list[str]:
        return self._stage(
            "instruct", name, checkpoint, *values, questions="data/questions", corpus="data/corpus.jsonl"
        )

    def _memory(self, checkpoint: str, corpus: str, name: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "pipelines.build_memory",
            "--input",
            self.path(corpus),
            "--checkpoint",
            self.path(checkpoint),
            "--backbone",
            self.base,
            "--num-shards",
            "8",
            "--num-workers",
            str(self.workers),
            "--dtype",
            self.dtype,
            "--output",
            self.path(name),
        ]

    def _utilities(self, questions: str, name: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "pipelines.score_utilities",
            "--questions",
            self.path(f"data/{questions}"),
            "--published-pools",
            "--checkpoint",
            self.path("instruct/checkpoint"),
            "--backbone",
            self.base,
            "--memory",
            self.path("memory"),
            "--num-workers",
            str(self.workers),
            "--output",
            self.path(name),
        ]

    def _joint(
        self,
        name: str,
        *values: str,
        questions: str = "questions",
        utilities: str = "",
        checkpoint: str = "instruct/checkpoint",
    ) -> list[str]:
        inputs = {"checkpoint": checkpoint, "questions": f"data/{questions}", "memory": "memory", "output": name} | (
            {"utilities": utilities} if utilities else {}
        )
        return [
            sys.executable,
            "training/joint.py",
            *self._sets(*(f"{key}={self.path(path)}" for key, path in inputs.items()), *values),
        ]

    def _straight_through(self) -> list[str]:
        rate = "joint.optimiser.learning_rate=3e-4"
        values = (
            "joint.answer_weight=1",
            "joint.utility_weight=0",
            f"joint.steps={self.size.answer_steps}",
            "joint.micro_batch=4",
            rate,
        )
        return self._joint("answer", *values, checkpoint="joint/checkpoint")

    def _systems(self, names: tuple[str, ...]) -> list[str]:
        checkpoints = {"start": "instruct/checkpoint"} | {name: f"{name}/checkpoint" for name in names}
        found_in = f"{self.path('memory')},{self.path('index')}"
        return [
            part
            for n, checkpoint in checkpoints.items()
            for part in ("--system", f"{n}={self.path(checkpoint)},{found_in}")
        ]

    def _evaluate(self, name: str, systems: list[str], *more: str, splits: tuple[str, ...] = SPLITS) -> list[str]:
        return [
            sys.executable,
            "-m",
            "training.evaluate",
            "--questions",
            self.path("data/questions"),
            "--splits",
            ",".join(splits),
            "--backbone",
            self.base,
            *systems,
            "--num-selected",
            "2",
            "--conditions",
            "pool,right,wrong,none",
            "--output",
            self.path(name),
            *more,
        ]

    def _evaluation(self) -> list[str]:
        baselines = ["--baselines", ",".join(self.baselines), *(["--dense-model", self.dense] if self.dense else [])]
        answers = [
            "--generate",
            str(self.size.generated),
            "--generate-conditions",
            "pool,right,wrong,none",
            "--max-new-tokens",
            "10",
        ]
        return self._evaluate("evaluation", self._systems(self.systems), *baselines, *answers)

    def _alignment(self) -> list[str]:
        more = ("--alignment", str(self.size.aligned), "--limit", str(self.size.aligned), "--generate", "0")
        return self._evaluate("alignment", self._systems(("joint",)), *more, splits=SPLITS[:3])

    def _slots(self) -> dict[str, Step]:
        """Reading with fewer memory tokens: a warm start, a short training of compressor and generator together, MEMORY, evaluation."""
        steps: dict[str, Step] = {}
        for count in self.size.slots:
            fewer, name = f"slots-{count}/fewer", f"slots-{count}"
            merge = [
                sys.executable,
                "-m",
                "infra.evidence.fewer_slots",
                "--checkpoint",
                self.path("instruct/checkpoint"),
                "--backbone",
                self.base,
                "--memory-tokens",
                str(count),
                "--output",
                self.path(fewer),
            ]
            system = ["--system", f"{name}={self.path(f'{name}/checkpoint')},{self.path(f'{name}/memory')}"]
            more = ("--generate", str(self.size.generated), "--generate-conditions", "right,wrong")
            steps |= {
                f"{name}-fewer": Step(f"{count} memory tokens", merge),
                f"{name}-instruct": Step(
                    f"{count} memory tokens: train", self._instruct(name, self.path(fewer), *self.size.slot_overrides)
                ),
                f"{name}-memory": Step(
                    f"{count} memory tokens: MEMORY",
                    self._memory(f"{name}/checkpoint", "data/reading.jsonl", f"{name}/memory"),
                ),
                f"{name}-evaluate": Step(
                    f"{count} memory tokens: reading",
                    self._evaluate(f"{name}/evaluation", system, *more, splits=SPLITS[3:]),
                ),
            }
        return steps


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder with 2wiki/, hotpotqa/, musique/ and scp/, as published")
    add("--output", required=True, metavar="DIR", help="folder of this run")
    add("--backbone", default="", help="folder of SmolLM2-135M-Instruct (default: unpacked beside the output)")
    add("--start", default=SHIPPED, help="CHECKPOINT that stage pretrain goes on from (default %(default)s)")
    add(
        "--dense-model",
        default="",
        metavar="FOLDER",
        help="sentence-transformers folder of the baseline dense (default: without it)",
    )
    add(
        "--dtype",
        default="",
        choices=("float32", "bfloat16"),
        help="of the LM (default: bfloat16 where the processor has instructions for it)",
    )
    add("--workers", type=int, default=1, help="processes of the corpus jobs (default %(default)s)")
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
    add(
        "--generate",
        type=int,
        default=-1,
        metavar="N",
        help="questions of each set that are answered in words (default: by the size)",
    )
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
    options = parser.parse_args(argv)
    size = QUICK if options.quick else WHOLE
    if options.generate >= 0:
        size = replace(size, generated=options.generate)
    evidence = Evidence(
        Path(options.data).absolute(),
        Path(options.output).absolute(),
        size,
        text=not options.no_text,
        backbone=options.backbone,
        dense=options.dense_model,
        start=options.start,
        workers=options.workers,
        dtype=options.dtype,
        systems=tuple(name for name in TRAINED if name in options.systems),
    )
    steps = evidence.steps()
    if unknown := [name for name in options.only if name not in steps]:
        raise InputError(f"--only {unknown[0]!r}: no such step; there are {', '.join(steps)}")
    chosen = {name: step for name, step in steps.items() if not options.only or name in options.only}
    if options.dry_run:
        print(
            "\n".join(
                f"{n}: {shlex.join(['python' if p == sys.executable else p for p in s.command])}"
                for n, s in chosen.items()
            )
        )
        return 0
    evidence.output.mkdir(parents=True, exist_ok=True)
    # Where folders lie on this machine says nothing to anybody else.
    folders = {
        options.data: "DATA",
        options.output: "RUN",
        options.backbone: "MODEL_FOLDER",
        options.dense_model: "DENSE_FOLDER",
    }
    typed = shlex.join(["python", "-m", "infra.evidence", *(folders.get(part, part) for part in argv)])
    commands = evidence.output / COMMANDS
    earlier = json.loads(commands.read_text(encoding="utf-8")) if commands.is_file() else []
    atomic_write(commands, json.dumps([*(c for c in earlier if c != typed), typed], indent=1) + "\n")
    record = evidence.output / SECONDS
    seconds: dict[str, float] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for number, (name, step) in enumerate(chosen.items(), 1):
        spent = run_step(step, number, len(chosen))
        # A step that finds its artefact takes seconds: what making it took is kept.
        seconds[name] = max(round(spent, 1), seconds.get(name, 0.0))
        atomic_write(record, json.dumps(seconds, indent=1) + "\n")
    return 0
