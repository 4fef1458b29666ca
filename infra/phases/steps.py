"""Training against a whole corpus as commands: what is prepared once, the phases in order, the evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clara.errors import InputError
from infra.steps import MEAN_QUESTIONS, ROOT, Step, centred_slot_mean, for_stage, module, relative, training

PHASES = ("reasoner", "score", "generator", "joint")
"""In this order: the reasoner alone, on memory alone; weights of all sources; the generator on what is found; both."""
_TITLES = {
    "control": "Control: phase joint again, the gradient is cut",
    "standard_rag": "Standard RAG: an adapter that reads text",
}
_FOLD = 0.1  # joint.fit_share of the configurations of the phases


@dataclass(frozen=True)
class Settings:
    """What is trained on, and how much of it.

    Attributes:
        output: folder of all artefacts.
        corpus: JSONL with id, title, text.
        backbone: folder of the LM.
        start: CHECKPOINT whose compressor and generator are used.
        dtype: of the LM.
        dense_model: sentence-transformers folder or URL of an endpoint; empty: no dense vectors.
        documents: articles that are kept of the corpus, those that mention each other most.
        format: kinds of questions that are made of it, see `pipelines.build_questions`.
        scored: training questions whose candidates are read for the reasoner.
        fitted: questions of the fold whose candidates are read for the score.
        candidates: rows of each source that are read.
        temperature: τ of the score.
        answered: held-out questions that are also answered, by the systems of the last phases; 0: none.
        standard_rag: whether the baseline is trained too: as many steps of as many questions, on the passages' text.
        tracking: MLflow store; empty: none.
        sets: overrides of the phases' configurations.
    """

    output: Path
    corpus: str
    backbone: str
    start: str
    dtype: str
    dense_model: str = ""
    documents: int = 4000
    format: str = "cloze+natural"
    scored: int = 1000
    fitted: int = 100
    candidates: int = 2
    temperature: float = 0.05
    answered: int = 64
    standard_rag: bool = False
    tracking: str = ""
    sets: Sequence[str] = field(default=())


class Phases:
    """Paths of one run and the steps over them."""

    def __init__(self, settings: Settings, phases: Sequence[str] = PHASES, *, control: bool = False) -> None:
        """Check which phases are asked for.

        Args:
            settings: see `Settings`.
            phases: of `PHASES`, the first of them, in their order.
            control: whether the last phase is made again with the gradient cut.

        Raises:
            InputError: phases that do not exist, or whose predecessors are missing.
        """
        if not phases or tuple(phases) != PHASES[: len(phases)]:
            raise InputError(
                f"--phases {','.join(phases)}: expected the first of {','.join(PHASES)}, in this order: each begins "
                "with the CHECKPOINT of the one before"
            )
        self.settings, self.phases, self.control = settings, tuple(phases), control
        self._sources = ["memory", "bm25", *(["dense"] if settings.dense_model else [])]

    def path(self, name: str) -> str:
        """A path inside the run."""
        return relative(self.settings.output / name)

    @property
    def _searched(self) -> dict[str, str]:
        return {"memory": self.path("memory"), "index": self.path("index"), "backbone": self.settings.backbone}

    def checkpoint_after(self, phase: str) -> str:
        """CHECKPOINT that a phase ends with."""
        return self.path("scored") if phase == "score" else self.path(f"{phase}/checkpoint")

    def steps(self) -> list[Step]:
        """The commands in order."""
        steps, before = self._preparation(), self.path("start")
        for phase in self.phases:
            steps += self._score(before) if phase == "score" else [self._training(phase, phase, before)]
            if phase == "joint" and self.control:
                steps.append(self._training("joint", "control", before, "joint.cut_gradient=true"))
            if phase == "score" and self.settings.standard_rag:
                steps += self._standard_rag(before)
            before = self.checkpoint_after(phase)
        return [*steps, *self._evaluations()]

    def _preparation(self) -> list[Step]:
        given, questions = self.settings, self.path("questions")
        corpus = self.path("corpus.jsonl")
        select = module("pipelines.select_corpus", input=given.corpus, output=corpus, documents=given.documents)
        ask = module("pipelines.build_questions", input=corpus, format=given.format, pool_size=20, output=questions)
        compress = module(
            "pipelines.build_memory",
            input=corpus,
            checkpoint=given.start,
            backbone=given.backbone,
            num_shards=16,
            dtype=given.dtype,
            output=self.path("memory"),
        )
        centre = centred_slot_mean(
            checkpoint=given.start,
            questions=questions,
            split="train",
            limit=MEAN_QUESTIONS,
            backbone=given.backbone,
            dtype=given.dtype,
            set=f"model.fusion.temperature={given.temperature:g}",
            output=self.path("start"),
        )
        index = module(
            "pipelines.build_index",
            memory=self.path("memory"),
            checkpoint=self.path("start"),
            dense_model=given.dense_model,
            output=self.path("index"),
        )
        weigh = self._fit(self.path("start"), "unfitted", split="train")
        return [
            Step("Documents that mention each other", select),
            Step("Questions", ask),
            Step("MEMORY", compress),
            Step("Mean of the questions", centre),
            Step("INDEX", index),
            Step("Read candidates of training questions", self._utilities(self.path("start"), given.scored)),
            Step("Weights from statistics, for comparison", weigh),
        ]

    def _utilities(self, checkpoint: str, limit: int, *, fold: bool = False) -> list[str]:
        own = self.settings.candidates
        return module(
            "pipelines.score_utilities",
            "--no-positives",
            questions=self.path("questions"),
            split="train",
            fold=_FOLD if fold else "",
            limit=limit,
            checkpoint=checkpoint,
            **self._searched,
            dense_model=self.settings.dense_model,
            pool_size=len(self._sources) * own,
            from_index=own,
            from_bm25=own,
            from_dense=own if self.settings.dense_model else "",
            output=self.path("fold-utilities" if fold else "utilities"),
        )

    def _fit(
        self, checkpoint: str, output: str, *, split: str = "", utilities: str = "", sources: Sequence[str] = ()
    ) -> list[str]:
        return module(
            "training.fit_score",
            checkpoint=checkpoint,
            **self._searched,
            questions=self.path("questions"),
            split=split,
            utilities=utilities,
            dense_model=self.settings.dense_model,
            features=",".join(sources or self._sources),
            output=self.path(output),
        )

    def _score(self, before: str) -> list[Step]:
        """Read candidates of the fold with the trained reasoner, and fit the weights of all sources to them."""
        utilities = self._utilities(before, self.settings.fitted, fold=True)
        fit = self._fit(before, "scored", utilities=self.path("fold-utilities"))
        return [Step("Read candidates of the fold", utilities), Step("Phase score: weights of all sources", fit)]

    def _standard_rag(self, before: str) -> list[Step]:
        """The baseline: weights of words and dense vectors by the same utilities, and an adapter that reads text."""
        sources = [source for source in self._sources if source != "memory"]
        fit = self._fit(before, "rag-scored", utilities=self.path("fold-utilities"), sources=sources)
        train = self._training("standard_rag", "standard_rag", self.path("rag-scored"))
        return [Step("Standard RAG: weights of words and dense vectors", fit), train]

    def _training(self, phase: str, output: str, before: str, *more: str) -> Step:
        given = self.settings
        found = 3 if phase == "standard_rag" else given.candidates
        sources = [f"joint.from_dense={found}", f"retrieval.dense_model={given.dense_model}"]
        paths = {name: self.path(name) for name in ("questions", "memory", "index")}
        if phase == "reasoner":
            paths["utilities"] = self.path("utilities")
        command = training(
            "joint",
            relative(ROOT / "infra" / "configs" / f"{phase}.toml"),
            f"backbone.path={given.backbone}",
            f"backbone.dtype={given.dtype}",
            f"checkpoint={before}",
            *(f"{name}={path}" for name, path in paths.items()),
            f"joint.temperature={given.temperature:g}",
            *(sources if given.dense_model and phase != "reasoner" else []),
            *([f"tracking.uri={given.tracking}"] if given.tracking else []),
            *for_stage("joint", given.sets),
            *more,
            f"output={self.path(output)}",
        )
        return Step(_TITLES.get(output, f"Phase {phase}"), command)

    def _evaluations(self) -> list[Step]:
        """What all systems find for all held-out questions, and what those with a trained generator answer to some."""
        found = {"unfitted": self.path("unfitted")} | {phase: self.checkpoint_after(phase) for phase in self.phases}
        if self.control and "joint" in self.phases:
            found["control"] = self.path("control/checkpoint")
        if self.settings.standard_rag and "score" in self.phases:
            found["standard_rag"] = self.path("standard_rag/checkpoint")
        baselines = "bm25,dense" if self.settings.dense_model else "bm25"
        retrieval = self._evaluate(found, "evaluation", baselines, retrieval_only=True)
        steps = [Step("Evaluate: held-out questions over the whole corpus", retrieval)]
        answering = {name: path for name, path in found.items() if name not in ("unfitted", "reasoner", "score")}
        if (number := self.settings.answered) and answering:
            answers = self._evaluate(
                answering,
                "answers",
                "bm25",
                limit=number,
                generate=number,
                num_selected=3,
                max_new_tokens=12,
                conditions="index,right,none",
                generate_conditions="index",
            )
            steps.append(Step(f"Evaluate: answers to {number} held-out questions", answers))
        return steps

    def _evaluate(self, systems: Mapping[str, str], output: str, baselines: str, **more: object) -> list[str]:
        searched = f"{self.path('memory')},{self.path('index')}"
        return module(
            "training.evaluate",
            questions=self.path("questions"),
            splits="unseen",
            backbone=self.settings.backbone,
            dense_model=self.settings.dense_model,
            baselines=baselines,
            system=[f"{name}={checkpoint},{searched}" for name, checkpoint in systems.items()],
            **more,
            output=self.path(output),
        )
