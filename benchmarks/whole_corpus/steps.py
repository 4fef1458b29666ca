"""The corpora and the commands that prepare them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.demo.given import DTYPE, Given
from infra.steps import MEAN_QUESTIONS, Step, centred_slot_mean, module, relative

FEATURES: Sequence[Sequence[str]] = (("memory", "bm25", "dense"), ("bm25", "dense"), ("memory", "bm25"))
"""What a fused score weighs; each is measured with weights from statistics and with fitted ones."""
KINDS = ("unfitted", "fitted")
_FITTED = "2wiki"
_PUBLISHED = {
    "hotpotqa": "hotpotqa/hotpotqa_dev_sample.json",
    "2wiki": "2wiki/2wiki_dev_sample.json",
    "musique": "musique/musique_dev_sample.jsonl",
}


@dataclass(frozen=True)
class Corpus:
    """One corpus and its questions.

    Attributes:
        name: in the table.
        folder: of its artefacts.
        preparation: steps that make corpus files and QUESTIONS.
        files: the corpus, a quoted glob.
        asked: QUESTIONS that are measured, by name, each with its split (empty: all).
        fitted: QUESTIONS that the scores are fitted to, and whose mean a centred score subtracts, with their split.
        options: of the command.
    """

    name: str
    folder: Path
    preparation: Sequence[Step]
    files: str
    asked: dict[str, tuple[str, str]]
    fitted: tuple[str, str]
    options: argparse.Namespace = field(repr=False)

    def path(self, name: str) -> str:
        """A path inside its folder."""
        return relative(self.folder / name)

    def fused_path(self, features: Sequence[str], *, fitted: bool) -> str:
        """CHECKPOINT whose score weighs these features."""
        return self.path("-".join(["fitted" if fitted else "unfitted", *features]))

    @property
    def base(self) -> str:
        """Folder of the LM."""
        return str(self.options.backbone or relative(Path(self.options.output).absolute() / "base"))

    @property
    def dtype(self) -> str:
        """The type that the LM computes in, as the demo chooses it."""
        return Given(dtype=self.options.dtype).resolved_dtype(Path(self.options.output) / DTYPE)

    @property
    def model(self) -> dict[str, str]:
        """Options that name what is searched."""
        return {"memory": self.path("memory"), "index": self.path("index"), "backbone": self.base}

    def steps(self) -> list[Step]:
        """The commands in order."""
        options, (questions, split) = self.options, self.fitted
        score = centred_slot_mean(
            checkpoint=options.start,
            questions=questions,
            split=split,
            limit=MEAN_QUESTIONS,
            backbone=self.base,
            dtype=self.dtype,
            output=self.path("start"),
        )
        memory = module(
            "pipelines.build_memory",
            input=self.files,
            checkpoint=options.start,
            backbone=self.base,
            num_shards=8,
            dtype=self.dtype,
            output=self.path("memory"),
        )
        index = module(
            "pipelines.build_index",
            memory=self.path("memory"),
            checkpoint=self.path("start"),
            dense_model=options.dense_model,
            output=self.path("index"),
        )
        steps = [
            *self.preparation,
            Step(f"{self.name}: mean of the questions", score),
            Step(f"{self.name}: MEMORY", memory),
            Step(f"{self.name}: INDEX", index),
            Step(f"{self.name}: read candidates", self._utilities()),
        ]
        for features in FEATURES:
            title = f"{self.name}: weights of {', '.join(features)}"
            steps += [Step(f"{title}, {kind}", self._fit(features, fitted=kind == "fitted")) for kind in KINDS]
        return steps

    def _utilities(self) -> list[str]:
        (questions, split), own = self.fitted, self.options.candidates
        return module(
            "pipelines.score_utilities",
            "--no-positives",
            questions=questions,
            **({"split": split} if split else {"set": "utility_job.split="}),
            limit=self.options.fitted,
            checkpoint=self.path("start"),
            **self.model,
            dense_model=self.options.dense_model,
            pool_size=3 * own,
            from_index=own,
            from_bm25=own,
            from_dense=own,
            output=self.path("utilities"),
        )

    def _fit(self, features: Sequence[str], *, fitted: bool) -> list[str]:
        return module(
            "training.fit_score",
            checkpoint=self.path("start"),
            **self.model,
            questions=self.fitted[0],
            split="" if fitted else self.fitted[1],
            utilities=self.path("utilities") if fitted else "",
            dense_model=self.options.dense_model if "dense" in features or fitted else "",
            features=",".join(features),
            output=self.fused_path(features, fitted=fitted),
        )


def demo(output: Path, options: argparse.Namespace) -> Corpus:
    """The demo's corpus: Wikipedia summaries that mention each other, and cloze questions of held-out articles."""
    folder = output / "demo"
    wiki, corpus, questions = (
        relative(p) for p in (output / "wiki.jsonl", folder / "corpus.jsonl", folder / "questions")
    )
    language_model = Step("Language model", module("infra.demo.base_model", output=relative(output / "base")))
    select = module("pipelines.select_corpus", input=wiki, output=corpus, documents=options.documents)
    ask = module("pipelines.build_questions", input=corpus, format="cloze", pool_size=20, output=questions)
    preparation = [
        *([] if options.backbone else [language_model]),
        Step("Wikipedia summaries", module("pipelines.wiki_corpus", output=wiki)),
        Step("demo: documents that mention each other", select),
        Step("demo: questions", ask),
    ]
    asked = {"cloze, unseen": (questions, "unseen")}
    return Corpus("demo", folder, preparation, corpus, asked, (questions, "train"), options)


def samples(output: Path, options: argparse.Namespace) -> Corpus:
    """All paragraphs of the published samples together; the questions that are fitted to are not measured."""
    folder = output / "samples"
    preparation = []
    for name, file in _PUBLISHED.items():
        convert = module(
            "pipelines.build_questions",
            input=str(Path(options.data) / file),
            format=name,
            output=relative(folder / name),
            corpus_output=relative(folder / f"corpus-{name}.jsonl"),
        )
        preparation.append(Step(f"samples: {name}", convert))
    fitted, corpus = relative(folder / _FITTED), relative(folder / "corpus-*.jsonl")
    asked = {name: (relative(folder / name), "") for name in _PUBLISHED if name != _FITTED}
    return Corpus("samples", folder, preparation, corpus, asked, (fitted, ""), options)
