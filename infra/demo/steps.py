"""The steps of the demo, as commands."""

import json
from pathlib import Path

from infra.demo.given import CONFIG, DTYPE, QUICK, QUICK_DOCUMENTS, WHOLE, Given
from infra.demo.questions import shown_questions
from infra.steps import MEAN_QUESTIONS, ROOT, SHIPPED, Step, centred_slot_mean, for_stage, module, relative, training
from infra.summary import read

MODEL_NAME = "clara-demo"
_WEIGHED_QUESTIONS = 64
LONG_RUN = relative(ROOT / "infra" / "start" / "reasoner")
"""CHECKPOINT of the shipped start after its longer training (docs/results/phases.md)."""
_TRAINED = {"after": "what was trained here", "long": "the longer training"}
NOT_PROMOTED = 3  # exit status of training.promote
_NO_ALIAS = "This version gets no alias, for the reason above."


class Demo:
    """Paths of one run and the steps over them."""

    def __init__(
        self, output: Path, documents: int, *, pretrain: bool = False, world: bool = True, given: Given | None = None
    ) -> None:
        self.output, self.documents, self.pretrain, self.world = output, documents, pretrain, world
        self.given = given = given or Given()
        self.size = QUICK if documents < QUICK_DOCUMENTS and not (pretrain or given.config != CONFIG) else WHOLE
        self.dtype = given.resolved_dtype(output / DTYPE)
        self.shared = output.parent
        self.tracking = f"sqlite:///{self.shared / 'mlflow.db'}"
        self.base = given.backbone or relative(self.shared / "base")
        self.wiki = given.corpus or relative(self.shared / "wiki.jsonl")
        self.start = self.path("instruct/checkpoint") if pretrain else given.start or SHIPPED
        self.long_run = self.start == SHIPPED and not given.backbone  # it is of this start and model

    def path(self, name: str) -> str:
        """A path inside this run."""
        return relative(self.output / name)

    def trained(self, name: str) -> str:
        """The newest `memory` or `index` of joint training, by its report; without a report, the expected path."""
        report = self.output / "joint" / "report.json"
        if not report.is_file():
            return self.path(f"joint/{name}-v2")
        return relative(Path(json.loads(report.read_text(encoding="utf-8"))[name]).absolute())

    def steps(self) -> list[Step]:
        """The commands in order."""
        steps = []
        if not self.given.backbone:
            steps.append(Step("Language model", module("infra.demo.base_model", output=self.base)))
        if not self.given.corpus:
            steps.append(Step("Corpus", module("pipelines.wiki_corpus", output=self.wiki)))
        steps += [*self.preparation(), *self.learning(), *self.publication()]
        if self.world and self.size is WHOLE:
            world = module("infra.world", output=relative(self.shared / "world"), control=True)
            steps.append(Step("See it learn: a small world", world))
        return steps

    def preparation(self) -> list[Step]:
        """Documents, questions, MEMORY and INDEX."""
        corpus, questions = self.path("corpus.jsonl"), self.path("questions")
        select = module("pipelines.select_corpus", input=self.wiki, output=corpus, documents=self.documents)
        ask = module("pipelines.build_questions", input=corpus, format="cloze", pool_size=20, output=questions)
        natural = module(
            "pipelines.build_questions", input=corpus, format="natural", output=self.path("natural-questions")
        )
        compress = module(
            "pipelines.build_memory",
            input=corpus,
            checkpoint=self.start,
            backbone=self.base,
            num_shards=8,
            overwrite=True,
            dtype=self.dtype,
            output=self.path("memory-v0"),
        )
        return [
            Step("Documents that mention each other", select),
            Step("Questions: a name is left out", ask),
            # A corpus of one's own may state no fact in a known form.
            *([] if self.given.corpus else [Step("Natural questions", natural)]),
            *(self.pretraining() if self.pretrain else []),
            Step("Compress: MEMORY v0", compress),
            *self.scoring(),
        ]

    def scoring(self) -> list[Step]:
        """INDEX, and the fused score over its sources: geometry and weights from statistics, no label and no answer."""
        questions = {"questions": self.path("questions")}
        centre = centred_slot_mean(
            checkpoint=self.start,
            **questions,
            split="train",
            limit=MEAN_QUESTIONS,
            backbone=self.base,
            dtype=self.dtype,
            output=self.path("centred"),
        )
        index = module(
            "pipelines.build_index",
            memory=self.path("memory-v0"),
            checkpoint=self.path("centred"),
            output=self.path("index-v0"),
        )
        steps = [
            Step("Mean of the questions", centre),
            Step("Index: memory and words", index),
            Step("Weights of memory and words", self._weighing(self.path("centred"), "scored")),
        ]
        if self.long_run:
            steps.append(Step("The same for the longer training that ships", self._weighing(LONG_RUN, "long-scored")))
        return steps

    def _weighing(self, checkpoint: str, output: str) -> list[str]:
        return module(
            "training.fit_score",
            checkpoint=checkpoint,
            memory=self.path("memory-v0"),
            index=self.path("index-v0"),
            questions=self.path("questions"),
            backbone=self.base,
            features="memory,bm25",
            split="train",
            limit=_WEIGHED_QUESTIONS,
            output=self.path(output),
        )

    def pretraining(self) -> list[Step]:
        """The start from nothing: stages pretrain and instruct on the whole corpus without the held-out targets."""
        examples, questions = self.path("examples"), self.path("all-questions")
        every_question = module(
            "pipelines.build_questions",
            input=self.wiki,
            format="cloze",
            pool_size=20,
            train_pools=True,
            output=questions,
        )
        pretrain = (f"examples={examples}", f"output={self.path('pretrain')}")
        instruct = (
            f"checkpoint={self.path('pretrain/checkpoint')}",
            f"questions={questions}",
            f"corpus={self.wiki}",
            f"output={self.path('instruct')}",
        )
        model = (f"backbone.path={self.base}", f"backbone.dtype={self.dtype}")
        config, sets = self.given.config, self.given.sets
        return [
            Step(
                "Examples",
                module("pipelines.build_examples", input=self.wiki, exclude_held_out=True, output=examples),
            ),
            Step("All questions", every_question),
            Step(
                "Stage pretrain",
                training("pretrain", config, *model, "stage=pretrain", *pretrain, *for_stage("pretrain", sets)),
            ),
            Step(
                "Stage instruct",
                training("pretrain", config, *model, "stage=instruct", *instruct, *for_stage("instruct", sets)),
            ),
        ]

    def learning(self) -> list[Step]:
        """Joint training, and the evaluation: before, after, and what the longer training that ships has."""
        old, final = f"{self.path('memory-v0')},{self.path('index-v0')}", self.path("joint/checkpoint")
        joint = training(
            "joint",
            self.given.config,
            f"backbone.path={self.base}",
            f"backbone.dtype={self.dtype}",
            # A quarter more time, and half a gigabyte less for each rank.
            "backbone.gradient_checkpointing=true",
            f"checkpoint={self.path('scored')}",
            f"questions={self.path('questions')}",
            f"memory={self.path('memory-v0')}",
            f"index={self.path('index-v0')}",
            f"output={self.path('joint')}",
            f"tracking.uri={self.tracking}",
            *self.size.overrides,
            *for_stage("joint", self.given.sets),
        )
        evaluate = module(
            "training.evaluate",
            questions=self.path("questions"),
            output=self.path("evaluation"),
            backbone=self.base,
            system=[
                f"before={self.path('scored')},{old}",
                f"after={final},{self.trained('memory')},{self.trained('index')}",
                *([f"long={self.path('long-scored')},{old}"] if self.long_run else []),
            ],
            baselines="bm25",
            num_selected=2,
            limit=self.size.questions,
            generate=self.size.generated,
            max_new_tokens=12,
        )
        return [
            Step("Joint training, with a re-encoding beside it", joint),
            Step("Evaluate side by side, with BM25", evaluate),
        ]

    def models(self) -> dict[str, dict[str, str]]:
        """Options that name each trained system, by its name in the evaluation."""
        after = {
            "checkpoint": self.path("joint/checkpoint"),
            "memory": self.trained("memory"),
            "index": self.trained("index"),
        }
        long = {name: self.path(f"{name}-v0") for name in ("memory", "index")}
        found = {"after": after} | ({"long": {"checkpoint": self.path("long-scored"), **long}} if self.long_run else {})
        return {name: options | {"backbone": self.base} for name, options in found.items()}

    def publication(self) -> list[Step]:
        """Register what was trained here, then what ships; promote each if it is better; ask."""
        steps = []
        for name, model in self.models().items():
            register = module(
                "training.register",
                name=MODEL_NAME,
                **model,
                evaluation=self.path("evaluation"),
                system=name,
                tracking_uri=self.tracking,
            )
            promote = module("training.promote", name=MODEL_NAME, version="latest", tracking_uri=self.tracking)
            steps += [
                Step(f"Register {_TRAINED[name]}", register),
                Step(f"Promote {_TRAINED[name]}", promote, {NOT_PROMOTED: _NO_ALIAS}),
            ]
        return [*steps, Step(f"Ask the better of them: {_TRAINED[self.better()]}", self.asking(*self.asked()))]

    def better(self) -> str:
        """The trained system that makes held-out answers likelier, by the evaluation; before there is one, the last."""
        *_, last = names = list(self.models())
        if not (self.output / "evaluation" / "report.json").is_file():
            return last
        systems = read(self.output / "evaluation")["systems"]
        values = {name: systems[name]["unseen"]["index.log_likelihood"]["value"] for name in names if name in systems}
        return max(values, key=lambda name: values[name]) if values else last

    def asking(self, *questions: str) -> list[str]:
        """The command that asks the better trained system; the answers to given questions, see `asked`, are judged."""
        judge = self._asked_from() if questions else ""
        model = self.models()[self.better()]
        return module("clara.ask", *questions, **model, num_selected=2, judge_by=judge)

    def asked(self) -> list[str]:
        """Questions for the last step; none before there are any."""
        return shown_questions(self._asked_from())

    def _asked_from(self) -> str:
        return self.path("questions" if self.given.corpus else "natural-questions")
