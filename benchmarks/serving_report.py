"""The report of benchmarks/serving.py."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "memory": "`clara serve`, memory",
    "text": "the same service, raw text in the prompt",
    "mlflow": "MLflow's scoring server, memory",
    "ask": "`clara.ask` in one process, one by one",
}
"""What is compared, in the order of the table."""
_AIM_ANSWERS, _AIM_START_SECONDS = 4.0, 15.0


def ratio(rounds: Sequence[Mapping[str, Any]], above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, float]:
    """Of two figures that each round has: median, least and most of their ratio.

    Args:
        rounds: each a list `points`, with `name`, `clients` and figures.
        above: `name`, `clients` and `figure` of the numerator.
        below: those of the denominator.
    """
    found = [_figure(each, **above) / _figure(each, **below) for each in rounds]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def _figure(of: Mapping[str, Any], name: str, clients: int, figure: str) -> float:
    (point,) = (p for p in of["points"] if (p["name"], p["clients"]) == (name, clients))
    return float(point[figure])


def ratios(rounds: Sequence[Mapping[str, Any]], clients: Sequence[int]) -> list[dict[str, Any]]:
    """What the aims are about: first token of memory against text, answers a second against one by one and MLflow."""
    found: list[dict[str, Any]] = []
    for number in clients:
        own = {"name": "memory", "clients": number}
        for what, other, figure in (
            ("first token, of raw text's", {"name": "text", "clients": number}, "first_p50"),
            ("answers a second, of raw text's", {"name": "text", "clients": number}, "answers_per_second"),
            ("answers a second, of MLflow's", {"name": "mlflow", "clients": number}, "answers_per_second"),
            ("answers a second, of one by one", {"name": "ask", "clients": 1}, "answers_per_second"),
            ("processor time, of one by one", {"name": "ask", "clients": 1}, "processor_seconds_per_answer"),
        ):
            found.append(
                {"clients": number, "what": what} | ratio(rounds, own | {"figure": figure}, other | {"figure": figure})
            )
    return found


def _differing(found: Mapping[str, Any]) -> list[str]:
    """How many answers from memory are not those one by one, in the type that the model computes in."""
    points = [point for each in found["rounds"] for point in each["points"] if "compared" in point]
    keys = dict.fromkeys((point["name"], point["clients"]) for point in points)
    lines = [f"Answers that differ from those one by one, in {found['dtype']}:", ""] if points else []
    for name, clients in keys:
        own = [point for point in points if (point["name"], point["clients"]) == (name, clients)]
        differ, compared = (sum(point[key] for point in own) for key in ("differ", "compared"))
        lines.append(f"* {NAMES[name]}, {clients} client(s): {differ} of {compared}")
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """The tables."""
    about, rounds = found["about"], found["rounds"]
    lines = [
        "# Serving",
        "",
        f"`{about['command']}`",
        "",
        f"{about['processor']}, {about['cores']} cores, {about['torch_threads']} thread(s)"
        f"{', ' + about['gpu'] if about['gpu'] else ''}; load average at the start {about['load_average'][0]}. "
        f"{found['rows']} passages searched, {found['passages']} read, {found['tokens']} tokens at most; "
        f"{found['answers']} answers a point, {len(rounds)} round(s). Search is included.",
        *(["", *found["notes"]] if found["notes"] else []),
        "",
        "Start-up to ready: "
        + ", ".join(f"{NAMES[name]} {seconds:.1f} s" for name, seconds in found["start_seconds"].items())
        + f". Aim: {_AIM_START_SECONDS:g} s.",
        "",
        "Medians of the rounds, in seconds:",
        "",
        "| what | clients | answers/s | processor s an answer | first token p50 | p99 | whole answer p50 | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, clients in [(p["name"], p["clients"]) for p in rounds[0]["points"]]:
        cells = [
            f"{statistics.median(_figure(r, name, clients, key) for r in rounds):.2f}"
            for key in (
                *("answers_per_second", "processor_seconds_per_answer"),
                *("first_p50", "first_p99", "whole_p50", "whole_p99"),
            )
        ]
        lines.append(f"| {NAMES[name]} | {clients} | {' | '.join(cells)} |")
    lines += ["", *_differing(found)]
    lines += ["", "Memory against the others, median of the rounds [least, most]:", ""]
    lines += ["| clients | what | ratio |", "|---|---|---|"]
    for each in found["ratios"]:
        cell = f"**{each['median']:.2f}×** [{each['min']:.2f}, {each['max']:.2f}]"
        lines.append(f"| {each['clients']} | {each['what']} | {cell} |")
    lines += [
        "",
        f"Aims: first token below 1×; with 8 clients {_AIM_ANSWERS:g}× the answers a second of one by one.",
        "",
    ]
    return "\n".join(lines)
