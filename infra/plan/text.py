"""A plan as text for a terminal."""

from collections.abc import Mapping
from typing import Any

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(num_bytes: float) -> str:
    """Bytes in powers of ten."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} bytes"


def duration(hours: float) -> str:
    """Hours, or minutes or seconds where they are few."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"


def _range(figure: Mapping[str, Any], shown: Any) -> str:
    mark = "assumed" if figure["assumed"] else "measured"
    return f"{shown(figure['value'])}  [{shown(figure['low'])} to {shown(figure['high'])}, {mark}]"


def as_text(plan: Mapping[str, Any]) -> str:
    """The plan in sections, one figure a line."""
    request, rows, memory, index = plan["request"], plan["rows"], plan["memory"], plan["index"]
    lines = [
        f"{request['documents']:,} documents of {request['tokens_per_document']:,} tokens: {rows['count']:,} rows of "
        f"{rows['mean_tokens']:.0f} tokens, {memory['num_memory_tokens']} memory tokens each "
        f"({memory['compression']:.1f}x)",
        f"backbone {request['backbone']}: {plan['backbone']['parameters'] / 1e9:.2f}e9 parameters; "
        f"{request['gpus']} x {request['gpu']}, refreshes on {request['refresh_gpus']}",
        "",
        "MEMORY",
        *(f"  {name:<9}{size(of)}" for name, of in memory["bytes_by_codec"].items()),
        f"  and keys {size(memory['keys_bytes'])}, texts {size(memory['records_bytes'])}",
        f"  codec: {memory['codec']['name']}: {memory['codec']['why']}",
        f"INDEX    {index['factory']}, RAM {size(index['bytes'])}; words on disk {size(index['words_bytes'])}",
        "",
        "Time",
        *(f"  {name.replace('_', ' '):<12}{_range(of, duration)}" for name, of in plan["hours"].items()),
        *_refresh(plan["refresh"]),
        *_gpu(plan["gpu_memory"], plan["gpu_memory_assumed_bytes"]),
        *_price(plan["price"], plan["refresh"]["counted"]),
        *_break_even(plan["break_even"]),
    ]
    if plan["assumed"]:
        source = plan["hours"][plan["assumed"][0]]["source"].partition(";")[0]
        lines += ["", f"Assumed: {', '.join(plan['assumed'])} ({source})."]
    return "\n".join(lines)


def _refresh(of: Mapping[str, Any]) -> list[str]:
    every = f", one every {of['every_steps']} steps" if of["most"] else ""
    return [
        "",
        "Refreshing",
        f"  one full refresh takes {of['share_of_one']:.1%} of the device time of run and refresh; "
        f"{of['most']} fit {of['wanted_share']:.0%}{every}",
        f"  encoding pools afresh (rerank) takes {of['rerank_share_of_a_step']:.0%} of a step",
        f"  policy: {of['policy']['name']}: {of['policy']['why']}",
    ]


def _gpu(of: Mapping[str, Any], assumed: float) -> list[str]:
    if not of:
        return []
    lines = ["", f"Memory of a GPU, {size(of['usable_bytes'])} of it usable ({size(assumed)} for libraries assumed)"]
    for name, stage in of["stages"].items():
        parts = ", ".join(f"{part} {size(num)}" for part, num in stage["bytes"].items() if part != "total")
        fits = "fits" if stage["fits"] else "does not fit"
        lines.append(f"  {name:<12}{size(stage['bytes']['total'])}, {fits}: {parts}")
    return [*lines, f"  choose: {of['choice']}" if of["choice"] else f"  {of['advice']}"]


def _price(of: Mapping[str, Any] | None, refreshes: int) -> list[str]:
    if of is None:
        return []
    names = {"refreshes": f"{refreshes} refreshes"}
    shown = [f"  {names.get(name, name):<12}{_range(figure, lambda v: f'{v:,.2f}')}" for name, figure in of.items()]
    return ["", "Price of the GPUs", *shown]


def _break_even(of: Mapping[str, Any]) -> list[str]:
    head = ["", "Against standard RAG, which reads the raw text for each answer"]
    text, memory = of["operations_of_an_answer_from_text"], of["operations_of_an_answer_from_memory"]
    if of["answers"] is None:
        return [*head, f"  reading memory is not cheaper here ({memory:.2g} operations, {text:.2g} from text)"]
    return [
        *head,
        f"  {of['tokens_of_text_per_answer']:.0f} tokens of text an answer: {text / memory:.1f} times the operations "
        "of reading memory",
        f"  compression is paid back after {of['answers']:,} answers; with joint training after "
        f"{of['answers_with_joint_training']:,}",
    ]
