"""The whole way on the embedded default: from a corpus to a registered model that answers, then a small world in which one sees it learn.

    python -m infra.demo [--documents 1000] [--pretrain] [--output artefacts/demo-1000]
    python -m infra.demo --input corpus.jsonl --backbone MODEL_FOLDER --start CHECKPOINT --config FILE   the same on
    other ground

Every step is a command that a user types; it is printed before it runs. A step whose artefact is there and unchanged
says so and takes no time, so that an interrupted demo goes on where it stopped.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from clara.config.load import load
from clara.errors import InputError
from clara.storage.artefact import atomic_write
from infra.steps import ROOT, SHIPPED, Step, relative, run_step
from infra.summary import read, text

CONFIG = "infra/configs/demo.toml"
MODEL_NAME = "clara-demo"
QUICK_DOCUMENTS = 500  # a smaller corpus is the quick look


@dataclass(frozen=True)
class Size:
    """What two slow cores do in the time that a run may take.

    Attributes:
        questions: of each split that are evaluated.
        generated: of those, how many are also answered in words.
        overrides: of the configuration's joint stage.
    """

    questions: int
    generated: int
    overrides: tuple[str, ...] = ()


WHOLE = Size(questions=32, generated=12)
QUICK = Size(
    questions=8,
    generated=3,
    overrides=(
        "joint.steps=6",
        "joint.compressor_steps=2",
        "joint.refresh.start_step=2",
        "joint.refresh.delta_steps=3",
    ),
)


@dataclass(frozen=True)
class Given:
    """What a user brings instead of the embedded default; empty: the default."""

    corpus: str = ""
    backbone: str = ""
    start: str = ""
    config: str = CONFIG
    dtype: str = ""

    def resolved_dtype(self) -> str:
        """The type that the LM computes in: as asked for; else as a configuration of the user's own says; else what this processor is fast at."""
        if self.dtype or self.config != CONFIG:
            return self.dtype or load(self.config).backbone.dtype
        # Asked of a process of its own: torch holds 300 MB, which this one would keep for as long as the demo runs.
        question = "from clara.model.precision import multiplies_bfloat16 as asked; print('bfloat16' if asked() else 'float32')"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", question], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()


class Demo:
    """Paths of one run and the steps over them."""

    def __init__(
        self, output: Path, documents: int, *, pretrain: bool = False, world: bool = True, given: Given = Given()
    ) -> None:
        self.output, self.documents, self.pretrain, self.world, self.given = output, documents, pretrain, world, given
        self.size = QUICK if documents < QUICK_DOCUMENTS and not (pretrain or given.config != CONFIG) else WHOLE
        self.dtype = given.resolved_dtype()
        self.shared = output.parent
        self.tracking = f"sqlite:///{self.shared / 'mlflow.db'}"

    def path(self, name: str) -> str:
        """A path inside this run."""
        return relative(self.output / name)

    def trained(self, name: str) -> str:
        """The newest `memory` or `index` of joint training, as its report names it; before there is one, where the last would lie."""
        report = self.output / "joint" / "report.json"
        if not report.is_file():
            return self.path(f"joint/{name}-v2")
        return relative(Path(json.loads(report.read_text(encoding="utf-8"))[name]).absolute())

    def steps(self) -> list[Step]:
        """The commands in order."""
        given = self.given
        base, wiki = (
            given.backbone or relative(self.shared / "base"),
            given.corpus or relative(self.shared / "wiki.jsonl"),
        )
        corpus, questions = self.path("corpus.jsonl"), self.path("questions")
        start = self.path("instruct/checkpoint") if self.pretrain else given.start or SHIPPED
        module = [sys.executable, "-m"]
        steps = [
            *([] if given.backbone else [Step("Language model", [*module, "infra.demo.base_model", "--output", base])]),
            *([] if given.corpus else [Step("Corpus", [*module, "pipelines.wiki_corpus", "--output", wiki])]),
            Step(
                "Documents that mention each other",
                [
                    *module,
                    "pipelines.select_corpus",
                    "--input",
                    wiki,
                    "--output",
                    corpus,
                    "--documents",
                    str(self.documents),
                ],
            ),
            Step(
                "Questions",
                [
                    *module,
                    "pipelines.build_questions",
                    "--input",
                    corpus,
                    "--format",
                    "cloze",
                    "--pool-size",
                    "20",
                    "--output",
                    questions,
                ],
            ),
            *(self.pretraining(base, wiki) if self.pretrain else []),
            Step(
                "Compress: MEMORY v0",
                [
                    *module,
                    "pipelines.build_memory",
                    "--input",
                    corpus,
                    "--checkpoint",
                    start,
                    "--backbone",
                    base,
                    "--num-shards",
                    "8",
                    "--overwrite",
                    "--dtype",
                    self.dtype,
                    "--output",
                    self.path("memory-v0"),
                ],
            ),
            Step(
                "Index",
                [
                    *module,
                    "pipelines.build_index",
                    "--memory",
                    self.path("memory-v0"),
                    "--output",
                    self.path("index-v0"),
                ],
            ),
            Step(
                "Joint training, with a re-encoding beside it",
                [
                    sys.executable,
                    "training/joint.py",
                    "--config",
                    given.config,
                    "--set",
                    f"backbone.path={base}",
                    # A quarter more time, and half a gigabyte less for each rank.
                    "--set",
                    f"backbone.dtype={self.dtype}",
                    "--set",
                    "backbone.gradient_checkpointing=true",
                    "--set",
                    f"checkpoint={start}",
                    "--set",
                    f"questions={questions}",
                    "--set",
                    f"memory={self.path('memory-v0')}",
                    "--set",
                    f"index={self.path('index-v0')}",
                    "--set",
                    f"output={self.path('joint')}",
                    "--set",
                    f"tracking.uri={self.tracking}",
                    *(part for override in self.size.overrides for part in ("--set", override)),
                ],
            ),
            Step(
                "Evaluate: before and after, beside BM25", [*module, "training.evaluate", *self.evaluation(base, start)]
            ),
            Step("Register", [*module, "training.register", *self.registration(base)]),
            Step(
                "Promote",
                [
                    *module,
                    "training.promote",
                    "--name",
                    MODEL_NAME,
                    "--version",
                    "latest",
                    "--tracking-uri",
                    self.tracking,
                ],
                accepted=(0, 3),
            ),
            Step("Ask", [*module, "clara.ask", *self.asking(base), *self.asked()]),
        ]
        if self.world and self.size is WHOLE:
            steps.append(
                Step(
                    "See it learn: a small world",
                    [*module, "infra.world", "--output", relative(self.shared / "world"), "--control"],
                )
            )
        return steps

    def pretraining(self, base: str, wiki: str) -> list[Step]:
        """The shipped start from nothing: stages pretrain and instruct on the whole corpus without the held-out targets."""
        examples, questions = self.path("examples"), self.path("all-questions")
        stage = [
            sys.executable,
            "training/pretrain.py",
            "--config",
            self.given.config,
            "--set",
            f"backbone.path={base}",
            "--set",
            f"backbone.dtype={self.dtype}",
        ]
        return [
            Step(
                "Examples",
                [
                    sys.executable,
                    "-m",
                    "pipelines.build_examples",
                    "--input",
                    wiki,
                    "--exclude-held-out",
                    "--output",
                    examples,
                ],
            ),
            Step(
                "All questions",
                [
                    sys.executable,
                    "-m",
                    "pipelines.build_questions",
                    "--input",
                    wiki,
                    "--format",
                    "cloze",
                    "--pool-size",
                    "20",
                    "--train-pools",
                    "--output",
                    questions,
                ],
            ),
            Step(
                "Stage pretrain",
                [
                    *stage,
                    "--set",
                    "stage=pretrain",
                    "--set",
                    f"examples={examples}",
                    "--set",
                    f"output={self.path('pretrain')}",
                ],
            ),
            Step(
                "Stage instruct",
                [
                    *stage,
                    "--set",
                    "stage=instruct",
                    "--set",
                    f"checkpoint={self.path('pretrain/checkpoint')}",
                    "--set",
                    f"questions={questions}",
                    "--set",
                    f"corpus={wiki}",
                    "--set",
                    f"output={self.path('instruct')}",
                ],
            ),
        ]

    def evaluation(self, base: str, start: str) -> list[str]:
        """Arguments of the evaluation: before, after on the old and on the new memory."""
        final = self.path("joint/checkpoint")
        return [
            "--questions",
            self.path("questions"),
            "--output",
            self.path("evaluation"),
            "--backbone",
            base,
            "--system",
            f"before={start},{self.path('memory-v0')},{self.path('index-v0')}",
            "--system",
            f"stale={final},{self.path('memory-v0')},{self.path('index-v0')}",
            "--accept-stale",
            "stale",
            "--system",
            f"after={final},{self.trained('memory')},{self.trained('index')}",
            "--baselines",
            "bm25",
            "--num-selected",
            "2",
            "--limit",
            str(self.size.questions),
            "--generate",
            str(self.size.generated),
            "--max-new-tokens",
            "12",
        ]

    def registration(self, base: str) -> list[str]:
        """Arguments of the registration."""
        return [
            "--name",
            MODEL_NAME,
            "--checkpoint",
            self.path("joint/checkpoint"),
            "--memory",
            self.trained("memory"),
            "--index",
            self.trained("index"),
            "--backbone",
            base,
            "--evaluation",
            self.path("evaluation"),
            "--system",
            "after",
            "--tracking-uri",
            self.tracking,
        ]

    def asking(self, base: str) -> list[str]:
        """Arguments that load the trained model."""
        return [
            "--checkpoint",
            self.path("joint/checkpoint"),
            "--memory",
            self.trained("memory"),
            "--index",
            self.trained("index"),
            "--backbone",
            base,
            "--num-selected",
            "2",
        ]

    def asked(self) -> list[str]:
        """Three held-out questions; empty before there are any."""
        from clara.data.questions import read_questions

        try:
            return [q.question for q in read_questions(self.output / "questions", "unseen")[:3]]
        except InputError:
            return []


def closing(demo: Demo, seconds: dict[str, float]) -> str:
    """What was measured, where everything lies, and what to type next."""
    lines = ["", "Seconds: " + ", ".join(f"{title} {spent:.0f}" for title, spent in seconds.items())]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lines.append(f"In all {sum(seconds.values()) / 60:.1f} minutes; the largest process held {peak:.1f} GiB.")
    lines += ["", text(read(demo.output / "evaluation"), "unseen")]
    if demo.world and (world := demo.shared / "world" / "report.md").is_file():
        lines += ["", world.read_text(encoding="utf-8").strip()]
    lines += [
        "",
        f"Artefacts: {relative(demo.output)}/ (memory-v0, index-v0, joint/; evaluation/report.html has all measures and pictures)",
        f"Runs and registry: mlflow ui --backend-store-uri {demo.tracking}",
        f"Ask more: {shlex.join(['python', '-m', 'clara.ask', *demo.asking(demo.given.backbone or relative(demo.shared / 'base'))])} 'your question'",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--documents",
        type=int,
        default=1000,
        help="articles of the corpus, chosen so that they mention each other (default 1000)",
    )
    parser.add_argument("--output", help="directory of this run (default artefacts/demo-DOCUMENTS)")
    parser.add_argument(
        "--pretrain", action="store_true", help="make the start from nothing (hours) instead of taking the shipped one"
    )
    parser.add_argument(
        "--no-world",
        action="store_true",
        help=f"leave out the last step, the small world (left out anyway under {QUICK_DOCUMENTS} documents)",
    )
    parser.add_argument(
        "--input", default="", help="corpus JSONL with id, title, text (default: the Wikipedia summaries)"
    )
    parser.add_argument(
        "--backbone", default="", help="folder of a causal LM (default: SmolLM2-135M-Instruct, unpacked)"
    )
    parser.add_argument("--start", default="", help=f"CHECKPOINT to start from (default {SHIPPED})")
    parser.add_argument("--config", default=CONFIG, help="TOML file of the joint stage (default %(default)s)")
    parser.add_argument(
        "--dtype",
        default="",
        choices=("float32", "bfloat16"),
        help="type that the LM computes in (default: bfloat16 where the processor has instructions for it, else float32; of a --config: as it says)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(argv)
    if options.documents < 20:
        raise InputError(
            f"--documents is {options.documents}; expected 20 or more, so that there are questions to hold out"
        )
    suffix = "-pretrain" if options.pretrain else ""
    output = Path(options.output or f"artefacts/demo-{options.documents}{suffix}").absolute()
    given = Given(
        corpus=options.input, backbone=options.backbone, start=options.start, config=options.config, dtype=options.dtype
    )
    demo = Demo(output, options.documents, pretrain=options.pretrain, world=not options.no_world, given=given)
    if options.dry_run:
        print("\n".join(shlex.join(["python" if p == sys.executable else p for p in s.command]) for s in demo.steps()))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    print(f"The language model computes in {demo.dtype} (see --dtype).")
    seconds: dict[str, float] = {}
    total = len(demo.steps())
    for number in range(total):
        step = demo.steps()[number]  # made anew: the questions to ask are known only by then
        seconds[step.title] = run_step(step, number + 1, total)
    atomic_write(output / "seconds.json", json.dumps(seconds, indent=1) + "\n")
    print(closing(demo, seconds))
    return 0
