"""Train against a whole corpus: the query reasoner alone, the score's weights, the generator, then everything.

    python -m infra.phases --dense-model FOLDER --output artefacts/phases
    python -m infra.phases --input corpus.jsonl --phases reasoner,score --output artefacts/mine

Each phase is one command and, with --tracking-uri, one MLflow run; it is printed before it runs. Their settings are
infra/configs/reasoner.toml, generator.toml and joint.toml; --set changes a key in each of them. Finished steps are not
repeated, so that an interrupted run resumes. Questions whose targets no phase trains on are measured.
"""

from pathlib import Path

from clara.config.flags import Command, add_setting, as_sets
from clara.storage.folders import atomic_write
from infra.demo.given import DTYPE, Given
from infra.phases.steps import PHASES, Phases, Settings
from infra.steps import SHIPPED, Step, listed, module, relative, run_steps


def parser() -> Command:
    """The command line."""
    found = Command("infra.phases", __doc__, uses=["joint", "launch", "retrieval"])
    found.add_argument(
        "--phases", default=",".join(PHASES), help="the first of the phases, in their order (default: %(default)s)"
    )
    found.add_argument("--control", action="store_true", help="make the last phase again with the gradient cut")
    found.add_argument(
        "--standard-rag", action="store_true", help="train the baseline too: an adapter that reads the passages' text"
    )
    found.add_argument("--input", default="", help="corpus JSONL with id, title, text (default: Wikipedia summaries)")
    found.add_argument("--documents", type=int, default=4000, help="articles to keep of it (default: 4000)")
    found.add_argument(
        "--format",
        default="cloze+natural",
        choices=("cloze", "natural", "cloze+natural"),
        help="questions to make of it (default: %(default)s)",
    )
    found.add_argument("--scored", type=int, default=1000, help="training questions that are read (default: 1000)")
    found.add_argument("--fitted", type=int, default=100, help="questions that the score is fitted to (default: 100)")
    found.add_argument("--candidates", type=int, default=2, help="rows of each source that are read (default: 2)")
    found.add_argument(
        "--answered", type=int, default=64, help="held-out questions that are also answered (default: 64)"
    )
    found.add_argument("--dense-model", default="", help="sentence-transformers folder, or URL of an endpoint")
    found.add_argument("--backbone", default="", help="the LM (default: SmolLM2-135M-Instruct, unpacked)")
    found.add_argument("--start", default=SHIPPED, help="CHECKPOINT to begin with (default: %(default)s)")
    found.add_argument("--dtype", default="", choices=("float32", "bfloat16"), help="(default: the processor's)")
    found.add_argument("--output", default="artefacts/phases", metavar="DIR", help="default: %(default)s")
    add_setting(found, "tracking.uri", "--tracking-uri")
    found.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    output = Path(options.output).absolute()
    dtype = Given(dtype=options.dtype).resolved_dtype(output / DTYPE)
    settings = Settings(
        output=output,
        corpus=options.input or relative(output / "wiki.jsonl"),
        backbone=options.backbone or relative(output / "base"),
        start=options.start,
        dtype=dtype,
        dense_model=options.dense_model,
        documents=options.documents,
        format=options.format,
        scored=options.scored,
        fitted=options.fitted,
        candidates=options.candidates,
        answered=options.answered,
        standard_rag=options.standard_rag,
        tracking=options.config.tracking.uri,
        sets=tuple(as_sets(options.overrides)),
    )
    steps = [
        *(
            []
            if options.backbone
            else [Step("Language model", module("infra.demo.base_model", output=settings.backbone))]
        ),
        *([] if options.input else [Step("Corpus", module("pipelines.wiki_corpus", output=settings.corpus))]),
        *Phases(settings, options.phases.split(","), control=options.control).steps(),
    ]
    if options.dry_run:
        print(listed(steps))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / DTYPE, dtype + "\n")
    run_steps(steps)
    for name in ("evaluation", "answers"):
        if (output / name / "report.html").is_file():
            print(f"{relative(output)}/{name}/report.html: all measures, with intervals")
    return 0
