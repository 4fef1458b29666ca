"""The page about synthesised EXAMPLES: its record, and the sections made of it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clara.data.examples import Example
from pipelines.job import page as pages
from pipelines.job.page import Block, Chart, Quote, Section, Table, Text, bar_chart
from pipelines.synthesize import dialogues as streams
from pipelines.synthesize.estimate import Cost

_SHOWN_PAIRS, _SHOWN_CHARACTERS, _SHORT_CHARACTERS = 6, 600, 200


@dataclass
class Kind:
    """What was made of one kind: examples by their number of questions, and the first few."""

    sizes: Counter[int] = field(default_factory=Counter)
    shown: list[Example] = field(default_factory=list)

    @property
    def made(self) -> int:
        """Number of examples."""
        return self.sizes.total()

    @property
    def questions(self) -> int:
        """Number of questions in the examples."""
        return sum(size * count for size, count in self.sizes.items())


@dataclass(frozen=True)
class Summary:
    """What the page shows.

    Attributes:
        name: the EXAMPLES as they were named.
        manifest: of them.
        hash: of the manifest.
        kinds: what was made, by kind.
        letters: the first dead letter of each reason.
        run: what only the run knows, as `seconds`.
        spent: what the last run and all runs sent and paid; empty where no endpoint was asked.
        prices: of a million prompt tokens and reply tokens.
    """

    name: str
    manifest: Mapping[str, Any]
    hash: str
    kinds: Mapping[str, Kind]
    letters: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, float]
    spent: Mapping[str, Mapping[str, Any]]
    prices: tuple[float, float]

    @property
    def asked(self) -> int:
        """Examples that each kind was asked for: one of each chunk."""
        return int(self.manifest["counts"].get("unique chunks", 0))

    def cost(self, spent: Mapping[str, Any]) -> float:
        """What prompt and reply tokens cost."""
        return Cost(0, spent["prompt_tokens"], spent["reply_tokens"]).price(*self.prices)

    @property
    def rates(self) -> dict[str, float]:
        """What was done in a second, where the run's seconds are known and it reused nothing."""
        seconds, counts = self.run.get("seconds", 0.0), self.manifest["counts"]
        if not seconds or self.run.get("shards reused"):
            return {}
        done = {
            "examples": counts["examples"],
            **{name: counts.get(name, 0) for name in (streams.REQUESTS, streams.REPLY_TOKENS)},
        }
        return {f"{name} per second": round(count / seconds, 3) for name, count in done.items()}

    @property
    def figures(self) -> dict[str, float]:
        """What is logged beside the manifest's counts."""
        found = {name: float(value) for name, value in self.run.items()} | self.rates
        for kind, made in self.kinds.items():
            found |= {f"{kind}.made": float(made.made), f"{kind}.questions": float(made.questions)}
        for name, spent in self.spent.items():
            plain = {key: float(value) for key, value in spent.items() if isinstance(value, int | float)}
            found |= {f"{name}.{key}": value for key, value in {**plain, "cost": self.cost(spent)}.items()}
            found |= {f"{name}.retries": float(sum(spent["retries"].values()))} if "retries" in spent else {}
        return found


def page(summary: Summary) -> str:
    """The page as HTML, complete in itself."""
    manifest = summary.manifest
    counts, made = manifest["counts"], manifest["made_by"]
    facts = [
        ("examples", counts["examples"]),
        ("model", manifest["model"].get("name") or json.dumps(manifest["model"], ensure_ascii=False)),
        ("version of the prompts", manifest["prompts"]["version"] or "your own"),
        ("hash of the manifest", summary.hash),
        ("made", made["created"]),
    ]
    sections = [
        Section("", [Table(facts)]),
        _kinds(summary),
        pages.records(counts),
        Section("Coverage", [_coverage(summary)]),
        _cost(summary),
    ]
    if throughput := [*summary.run.items(), *summary.rates.items()]:
        sections.append(Section("Throughput", [Table(throughput)]))
    sections.append(_to_read(summary))
    if summary.letters:
        sections.append(_not_used(summary))
    return pages.page(f"EXAMPLES {summary.name}", [*sections, *pages.settings(made)])


def _kinds(summary: Summary) -> Section:
    rows: list[tuple[Any, ...]] = []
    charts: list[Chart] = []
    for kind, made in summary.kinds.items():
        asks = kind != "paraphrase"
        mean = round(made.questions / made.made, 2) if asks and made.made else ""
        rows.append((kind, summary.asked, made.made, summary.asked - made.made, made.questions if asks else "", mean))
        if asks and made.made:
            counts = [made.sizes[size] for size in range(max(made.sizes) + 1)]
            charts.append(bar_chart(*pages.grouped(counts, "questions"), f"{kind}: examples by their questions"))
    heads = ("kind", "asked for", "made", "not made", "questions", "questions an example")
    return Section("Examples by kind", [Table(rows, heads), *charts])


def _coverage(summary: Summary) -> Block:
    counts, checked = summary.manifest["counts"], summary.manifest["made_by"]["recipe"]["settings"]["coverage"]
    asked = summary.asked * sum(kind != "paraphrase" for kind in summary.kinds)
    if checked == "off" or not asked:
        return Text("It was not checked whether questions cover their document.")
    missed = counts.get(streams.UNCOVERED, 0)
    facts = [
        ("an example that does not cover its document is", "dropped" if checked == "required" else "kept"),
        (streams.UNCOVERED, missed),
        ("share of the question examples asked for", f"{missed / asked:.1%}"),
        (streams.ROUNDS, counts.get(streams.ROUNDS, 0)),
    ]
    return Table(facts)


def _cost(summary: Summary) -> Section:
    counts = summary.manifest["counts"]
    names = (streams.REQUESTS, streams.PROMPT_TOKENS, streams.REPLY_TOKENS)
    blocks: list[Block] = [Table([(f"{name} of these examples", counts.get(name, 0)) for name in names])]
    for name, spent in summary.spent.items():
        facts: list[tuple[str, Any]] = [
            (key.replace("_", " "), value) for key, value in spent.items() if isinstance(value, int | float)
        ]
        facts += [(f"retries: {reason}", count) for reason, count in sorted(spent.get("retries", {}).items())]
        facts.append(("cost", f"{summary.cost(spent):.4f}" if any(summary.prices) else "prices were not given"))
        blocks += [Text(name[:1].upper() + name[1:], "h3"), Table(facts)]
    return Section("Tokens and costs", blocks)


def _to_read(summary: Summary) -> Section:
    blocks: list[Block] = []
    for kind, made in summary.kinds.items():
        if made.shown:
            blocks += [Text(kind, "h3"), *map(_quote, made.shown)]
    return Section("Some of each kind", blocks)


def _quote(example: Example) -> Quote:
    text = _shortened(example.text, _SHOWN_CHARACTERS)
    if not example.questions:
        return Quote(example.title, text, [_shortened(answer, _SHOWN_CHARACTERS) for answer in example.answers])
    pairs = list(zip(example.questions, example.answers, strict=True))
    shown = Table(pairs[:_SHOWN_PAIRS], ("question", "answer"))
    return Quote(example.title, text, pairs=shown, num_more=max(0, len(pairs) - _SHOWN_PAIRS))


def _not_used(summary: Summary) -> Section:
    rows = [
        (reason, *(_shortened(letter[name], _SHORT_CHARACTERS) for name in ("detail", "snippet")))
        for reason, letter in sorted(summary.letters.items())
    ]
    return Section("Not used: the first of each reason", [Table(rows, ("reason", "what", "document or record"))])


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " …"
