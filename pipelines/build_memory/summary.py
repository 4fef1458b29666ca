"""One page about a MEMORY: input, outcomes, lengths, shards, throughput, settings; the same for tracking.

    python -m pipelines.build_memory.summary --memory DIR [--tracking-uri URI]

`build_memory` writes the page at its end, as `summary.html` in the MEMORY. The page is made from the files of the
MEMORY and is not part of the artefact.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clara.config.flags import Command
from clara.errors import command_line
from clara.memory.shards import KIND, PLAN, RECORDS
from clara.storage.artefact import Artefact
from clara.storage.cache import local_file
from clara.storage.paths import join
from clara.storage.tables import read_table
from pipelines.job import page as pages
from pipelines.job.page import NUM_BARS, Section, Table, bar_chart, grouped, line_chart
from pipelines.job.tracking import Logged, add_tracking_arguments, log_artefact

_NUM_POINTS = 120


@dataclass(frozen=True)
class Summary:
    """The data of the page.

    Attributes:
        name: the MEMORY as it was named.
        manifest: of the MEMORY.
        hash: of the manifest.
        lengths: number of rows by number of tokens `[longest + 1]`.
        truncated: rows that end inside a sentence or whose title was cut.
        shards: rows and bytes of each, by name.
        finished: seconds since the first shard was finished, and rows by then; empty for a store without file times.
        run: figures of this run that are not in the manifest, e.g. `seconds`.
    """

    name: str
    manifest: Mapping[str, Any]
    hash: str
    lengths: Sequence[int]
    truncated: int
    shards: Mapping[str, tuple[int, int]]
    finished: Sequence[tuple[float, float]]
    run: Mapping[str, Any]

    @property
    def rate(self) -> float:
        """Documents a second of the run; 0 where it is not known."""
        seconds = self.run.get("seconds") or 0
        return float(self.manifest["counts"].get("documents", 0)) / seconds if seconds else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """What is logged beside the manifest's counts."""
        known = {name: float(value) for name, value in self.run.items() if isinstance(value, int | float)}
        return {
            **known,
            "documents per second": self.rate,
            "tokens": float(sum(at * count for at, count in enumerate(self.lengths))),
        }


def summarise(memory: str, run: Mapping[str, Any] | None = None) -> Summary:
    """Read the data of the page, one shard after the other.

    Raises:
        InputError: there is no finished MEMORY.
    """
    artefact = Artefact.open(memory, KIND, lazy=True)
    manifest = artefact.manifest
    lengths, truncated = np.zeros(0, np.int64), 0
    shards: dict[str, tuple[int, int]] = {}
    times: list[tuple[float, int]] = []
    for entry in manifest["files"]:
        shard, _, file = entry["path"].rpartition("/")
        if not shard:
            continue
        rows, size = shards.get(shard, (0, 0))
        shards[shard] = max(rows, entry.get("rows", 0)), size + entry["bytes"]
        if file == RECORDS:
            found = read_table(artefact.file(entry["path"]), ["num_tokens", "truncated"])
            counts = np.bincount(found["num_tokens"].to_numpy())
            longest = max(len(lengths), len(counts))
            lengths = np.pad(lengths, (0, longest - len(lengths))) + np.pad(counts, (0, longest - len(counts)))
            truncated += int(found["truncated"].to_numpy().sum())
            plan = artefact.folder / shard / PLAN
            if plan.is_file():
                times.append((plan.stat().st_mtime, found.num_rows))
    return Summary(
        memory,
        manifest,
        artefact.hash,
        lengths.tolist(),
        truncated,
        shards,
        _cumulated(sorted(times)),
        dict(run or {}),
    )


def _cumulated(times: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for at, rows in times:
        points.append((at - times[0][0], rows + (points[-1][1] if points else 0)))
    kept = points[:: max(1, math.ceil(len(points) / _NUM_POINTS))]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


# --- the page
# ----------------------------------------------------------------------------------------------------------


def _lengths(summary: Summary) -> Section:
    rows = sum(summary.lengths)
    tokens = sum(length * count for length, count in enumerate(summary.lengths))
    limit, counts = summary.manifest["fingerprint_fields"]["max_tokens"], summary.manifest["counts"]
    facts = [
        ("tokens", tokens),
        ("tokens a chunk, mean", round(tokens / max(1, rows), 1)),
        ("tokens a chunk, most", max(0, len(summary.lengths) - 1)),
        ("tokens a chunk, limit", limit),
        ("chunks cut inside a sentence or title", summary.truncated),
        ("documents split into several chunks", counts.get("documents split", 0)),
    ]
    # These count all chunks, including duplicates; a compacted MEMORY may lack them.
    labels = {
        "documents truncated": "documents cut inside a sentence or title",
        "tokens of chunks truncated": "tokens of chunks cut inside a sentence or title",
        "title tokens cut off": "tokens cut off titles",
        "tokens of documents split": "tokens of documents split into several chunks",
    }
    facts += [(label, counts[name]) for name, label in labels.items() if name in counts]
    charts = [bar_chart(*grouped(summary.lengths, "tokens"), "chunks by their tokens")] if rows else []
    return Section("Lengths", [Table(facts), *charts])


def _shards(summary: Summary) -> Section:
    rows, sizes = [rows for rows, _ in summary.shards.values()], [size for _, size in summary.shards.values()]
    facts = [
        ("shards and overlays", len(rows)),
        ("rows, fewest", min(rows)),
        ("rows, most", max(rows)),
        ("bytes", sum(sizes)),
    ]
    width = max(1, math.ceil(len(rows) / NUM_BARS))
    means = [sum(rows[at : at + width]) / len(rows[at : at + width]) for at in range(0, len(rows), width)]
    caption = "rows of a shard" if width == 1 else f"rows of a shard, mean of {width}"
    return Section("Shards", [Table(facts), bar_chart(means, list(summary.shards)[::width], caption)])


def _throughput(summary: Summary) -> list[Section]:
    facts = [(name, value) for name, value in summary.run.items() if isinstance(value, int | float)]
    if summary.rate:
        facts.append(("documents a second, start to end", round(summary.rate, 2)))
    charts = []
    if len(summary.finished) > 1 and summary.finished[-1][0] > summary.finished[0][0]:
        charts = [line_chart(summary.finished, "rows finished by time", "s")]
    return [Section("Throughput", [Table(facts), *charts])] if facts or charts else []


def page(summary: Summary) -> str:
    """The page as self-contained HTML."""
    manifest = summary.manifest
    counts, made = manifest["counts"], manifest["made_by"]
    facts = [
        ("rows", counts.get("rows", sum(summary.lengths))),
        ("codec", manifest["codec"]),
        ("fingerprint", manifest["fingerprint"]),
        ("hash of the manifest", summary.hash),
        ("version of", manifest["parent"] or "none"),
        ("made", made["created"]),
    ]
    sections = [Section("", [Table(facts)]), pages.records(counts), _lengths(summary), _shards(summary)]
    sections += _throughput(summary)
    sections.append(Section("Fingerprint", [Table(list(manifest["fingerprint_fields"].items()))]))
    return pages.page(f"MEMORY {summary.name}", [*sections, *pages.settings(made)])


# --- the command
# ---------------------------------------------------------------------------------------------------------


def _log(summary: Summary, path: str, url: str, experiment: str) -> str:
    """Log the MEMORY with its page, and return the run's id."""
    again = f"python -m pipelines.build_memory.summary --memory {summary.name}"
    fields = summary.manifest["fingerprint_fields"]
    logged = Logged(summary.name, summary.manifest, summary.hash, fields, summary.figures, local_file(path), again)
    return log_artefact(logged, url, experiment)


def write_summary(memory: str, counts: Mapping[str, Any], url: str, experiment: str) -> None:
    """Write the page at the end of a job, and log it if a tracking URI is given.

    Raises:
        InputError: the tracking server refuses; the MEMORY is finished nevertheless.
    """
    summary = summarise(memory, {name: counts[name] for name in ("seconds", "shards", "shards reused")})
    path = pages.write(summary.name, page(summary))
    print(f"{'summary':>28}  {path}")
    if url:
        print(f"{'run':>28}  {_log(summary, path, url, experiment)}")


def parser() -> Command:
    """The command line."""
    parse = Command("pipelines.build_memory.summary", __doc__)
    parse.add_argument(
        "--memory", required=True, metavar="DIR", help="a finished MEMORY; its summary.html is rewritten"
    )
    add_tracking_arguments(parse)
    parse.add_argument("--dry-run", action="store_true", help="print what would be written and logged, and stop")
    return parse


def main(argv: Sequence[str]) -> int:
    """The command line."""
    args = parser().parse_args(argv)
    summary = summarise(args.memory)
    if args.dry_run:
        print(
            json.dumps(
                {
                    "page": join(args.memory, pages.NAME),
                    "rows": sum(summary.lengths),
                    "tracking_uri": args.tracking_uri,
                },
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
