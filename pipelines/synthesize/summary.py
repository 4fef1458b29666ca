"""One page about synthesised EXAMPLES: counts by kind, reasons of drops, coverage, costs, throughput, examples.

    python -m pipelines.synthesize.summary --examples DIR [--price-prompt X --price-reply Y] [--tracking-uri URI]

`synthesize` writes the page at its end, as `summary.html` in the EXAMPLES. It is made from them and is no part of
the artefact.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.config.flags import Command, add_setting
from clara.data.examples import Example, each_example
from clara.data.records import chunk_id
from clara.errors import InputError, command_line
from clara.storage import folders, paths
from clara.storage.artefact import Artefact
from clara.storage.cache import local_file
from pipelines.job import page as pages
from pipelines.job.tracking import Logged, add_tracking_arguments, log_artefact
from pipelines.synthesize import dialogues as streams
from pipelines.synthesize.page import Kind, Summary, page

KIND, JOB, SPENDING = "EXAMPLES", "synthesize", "spending.json"
"""The artefact, the job that made it, and the file with what its last run sent and paid, no part of the artefact."""
_SHOWN = 3
_RUN = ("seconds", "shards", "shards reused")


def spent_of(examples: paths.Name) -> dict[str, Any]:
    """What the last run sent and paid, where that is noted."""
    raw = folders.folder(examples).read(SPENDING)
    return dict(json.loads(raw)) if raw else {}


def summarise(
    examples: str,
    run: Mapping[str, float] | None = None,
    spent: Mapping[str, Any] | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
) -> Summary:
    """Read what the page shows, some examples at a time.

    Args:
        examples: the artefact.
        run: what only the run knows.
        spent: by the run; None: as it is noted there.
        prices: of a million prompt tokens and reply tokens.

    Raises:
        InputError: no finished EXAMPLES, or other ones than `synthesize` makes.
    """
    artefact = Artefact.open(examples, KIND)
    manifest, place = artefact.manifest, artefact.folder
    recipe = manifest["made_by"]["recipe"]
    if recipe.get("job") != JOB:
        raise InputError(
            f"{examples}: EXAMPLES of {recipe.get('program', 'another program')}; give some that "
            "pipelines.synthesize made"
        )
    kinds = {kind: Kind() for kind in recipe["settings"]["kinds"]}
    for example in each_example(artefact):
        made = kinds[_kind_of(example, tuple(kinds))]
        made.sizes[len(example.questions)] += 1
        if len(made.shown) < _SHOWN:
            made.shown.append(example)
    letters: dict[str, Mapping[str, Any]] = {}
    for letter in _letters(place, manifest):
        letters.setdefault(letter["reason"], letter)
    spent = spent_of(examples) if spent is None else spent
    return Summary(examples, manifest, artefact.hash, kinds, letters, dict(run or {}), spent, prices)


def _kind_of(example: Example, kinds: tuple[str, ...]) -> str:
    """Which request led to an example: simple and complex questions are alike in the artefact, but for their ids."""
    chunk = chunk_id(example.title, example.text)
    return {streams.example_id(kind, chunk): kind for kind in kinds}[example.example_id]


def _letters(place: Path, manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in manifest["files"]:
        if entry["path"].endswith(".jsonl"):
            with open(place / entry["path"], encoding="utf-8") as stream:
                yield from map(json.loads, stream)


def _log(summary: Summary, path: str, url: str, experiment: str) -> str:
    """Log the EXAMPLES with their page, and return the run's id."""
    prompt, reply = summary.prices
    again = (
        f"python -m pipelines.synthesize.summary --examples {summary.name} --price-prompt {prompt} --price-reply "
        f"{reply}"
    )
    logged = Logged(summary.name, summary.manifest, summary.hash, {}, summary.figures, local_file(path), again)
    return log_artefact(logged, url, experiment)


def report_examples(
    examples: str,
    counts: Mapping[str, Any],
    spent: Mapping[str, Any],
    prices: tuple[float, float],
    url: str,
    experiment: str,
) -> None:
    """Write the page at the end of a job, and log it if `url` is not empty.

    Raises:
        InputError: the tracking server refuses; the EXAMPLES are finished all the same.
    """
    summary = summarise(examples, {name: counts[name] for name in _RUN if name in counts}, spent, prices)
    path = pages.write(summary.name, page(summary))
    print(f"{'summary':>28}  {path}")
    if url:
        print(f"{'run':>28}  {_log(summary, path, url, experiment)}")


def parser() -> Command:
    """The command line."""
    parse = Command("pipelines.synthesize.summary", __doc__)
    parse.add_argument(
        "--examples",
        required=True,
        metavar="DIR",
        help="finished EXAMPLES of synthesize; their summary.html is written again",
    )
    add_setting(parse, "synthesis.endpoint.price_prompt")
    add_setting(parse, "synthesis.endpoint.price_reply")
    add_tracking_arguments(parse)
    parse.add_argument("--dry-run", action="store_true", help="print what would be written and logged, and stop")
    return parse


def main(argv: Sequence[str]) -> int:
    """The command line."""
    args = parser().parse_args(argv)
    summary = summarise(args.examples, prices=(args.price_prompt, args.price_reply))
    if args.dry_run:
        made = {kind: found.made for kind, found in summary.kinds.items()}
        print(
            json.dumps(
                {"page": paths.join(args.examples, pages.NAME), "examples": made, "tracking_uri": args.tracking_uri},
                indent=1,
            )
        )
        return 0
    path = pages.write(summary.name, page(summary))
    print(path)
    if args.tracking_uri:
        print(f"run {_log(summary, path, args.tracking_uri, args.tracking_experiment)}")
    return 0


if __name__ == "__main__":
    command_line(main)
