"""How the page about synthesised EXAMPLES looks."""

import html
import json
from typing import TYPE_CHECKING, Any

from clara.examples import Example
from pipelines import pages
from pipelines.pages import table
from pipelines.pictures import bars
from pipelines.synthesis import streams

if TYPE_CHECKING:
    from pipelines.synthesis.summary import Summary

_SHOWN_PAIRS, _SHOWN_CHARACTERS, _SHORT_CHARACTERS = 6, 600, 200


def _kinds(summary: "Summary") -> str:
    rows, pictures = [], []
    for kind, made in summary.kinds.items():
        asks = kind != "paraphrase"
        mean = round(made.questions / made.made, 2) if asks and made.made else ""
        rows.append((kind, summary.asked, made.made, summary.asked - made.made, made.questions if asks else "", mean))
        if asks and made.made:
            counts = [made.sizes[size] for size in range(max(made.sizes) + 1)]
            pictures.append(bars(*pages.grouped(counts, "questions"), f"{kind}: examples by their questions"))
    heads = ("kind", "asked for", "made", "not made", "questions", "questions an example")
    return f"<h2>Examples by kind</h2>{table(rows, heads)}{''.join(pictures)}"


def _coverage(summary: "Summary") -> str:
    counts, checked = summary.manifest["counts"], summary.manifest["made_by"]["recipe"]["settings"]["coverage"]
    asked = summary.asked * sum(kind != "paraphrase" for kind in summary.kinds)
    if checked == "off" or not asked:
        return "<h2>Coverage</h2><p>It was not checked whether questions cover their document.</p>"
    missed = counts.get(streams.UNCOVERED, 0)
    facts = [
        ("an example that does not cover its document is", "dropped" if checked == "required" else "kept"),
        (streams.UNCOVERED, missed),
        ("share of the question examples asked for", f"{missed / asked:.1%}"),
        (streams.ROUNDS, counts.get(streams.ROUNDS, 0)),
    ]
    return f"<h2>Coverage</h2>{table(facts)}"


def _cost(summary: "Summary") -> str:
    counts = summary.manifest["counts"]
    parts = [
        table(
            (f"{name} of these examples", counts.get(name, 0)) for name in (streams.REQUESTS, streams.PROMPT_TOKENS, streams.REPLY_TOKENS)
        )
    ]
    for name, spent in summary.spent.items():
        facts: list[tuple[str, Any]] = [(key.replace("_", " "), value) for key, value in spent.items() if isinstance(value, int | float)]
        facts += [(f"retries: {reason}", count) for reason, count in sorted(spent.get("retries", {}).items())]
        facts.append(("cost", f"{summary.cost(spent):.4f}") if any(summary.prices) else ("cost", "prices were not given"))
        parts.append(f"<h3>{html.escape(name[:1].upper() + name[1:])}</h3>{table(facts)}")
    return f"<h2>Tokens and costs</h2>{''.join(parts)}"


def _throughput(summary: "Summary") -> str:
    facts = [*summary.run.items(), *summary.rates.items()]
    return f"<h2>Throughput</h2>{table(facts)}" if facts else ""


def _text(text: str) -> str:
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
    return html.escape(shown)


def _example(example: Example) -> str:
    document = f"<p><b>{html.escape(example.title)}</b> {_text(example.text)}</p>"
    if not example.questions:
        return f"<blockquote>{document}{''.join(f'<p><i>{_text(answer)}</i></p>' for answer in example.answers)}</blockquote>"
    pairs = list(zip(example.questions, example.answers, strict=True))
    more = f"<p>and {len(pairs) - _SHOWN_PAIRS} more</p>" if len(pairs) > _SHOWN_PAIRS else ""
    return f"<blockquote>{document}{table(pairs[:_SHOWN_PAIRS], ('question', 'answer'))}{more}</blockquote>"


def _to_read(summary: "Summary") -> str:
    parts = [f"<h3>{html.escape(kind)}</h3>{''.join(map(_example, made.shown))}" for kind, made in summary.kinds.items() if made.shown]
    return f"<h2>Some of each kind</h2>{''.join(parts)}"


def _not_used(summary: "Summary") -> str:
    if not summary.letters:
        return ""
    rows = [(reason, _short(letter["detail"]), _short(letter["snippet"])) for reason, letter in sorted(summary.letters.items())]
    return f"<h2>Not used: the first of each reason</h2>{table(rows, ('reason', 'what', 'document or record'))}"


def _short(text: str) -> str:
    return text if len(text) <= _SHORT_CHARACTERS else text[:_SHORT_CHARACTERS] + " …"


def page(summary: "Summary") -> str:
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
    parts = [table(facts), _kinds(summary), pages.records(counts), _coverage(summary), _cost(summary), _throughput(summary)]
    parts += [_to_read(summary), _not_used(summary), pages.settings(made)]
    return pages.page(f"EXAMPLES {summary.name}", parts)
