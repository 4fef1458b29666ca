"""The hop of a supporting paragraph: 1 is found from the question alone, 2 and more through an earlier one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clara.errors import InputError
from clara.metrics import substring_match

UNKNOWN = 0
_BRACKETS = re.compile(r" \([^)]*\)$")
_REFERENCE = re.compile(r"#(\d+)")
# 2WikiMultihopQA names its supporting facts in the order of the chain: of one chain, or of two chains' beginnings and
# then their ends.
_CHAINS = {"compositional": (1, 2), "inference": (1, 2), "bridge_comparison": (1, 1, 2, 2)}


def fact_hops(kind: str, question: str, titles: Sequence[str]) -> dict[str, int]:
    """Hops of the supporting titles of HotpotQA and 2WikiMultihopQA; `UNKNOWN` where the file does not say.

    HotpotQA orders its facts by the hyperlink between them, which is not always the way of the question. There the
    first hop is the one article whose title the question says; where it says none or both, the hops are unknown.

    Args:
        kind: the row's `type`.
        question: its text.
        titles: of the supporting facts, in their order, each once.
    """
    if kind == "comparison":
        return dict.fromkeys(titles, 1)
    chain = _CHAINS.get(kind, ())
    if len(chain) == len(titles) > 0:
        return dict(zip(titles, chain, strict=True))
    if kind == "bridge" and len(titles) == 2:
        named = [title for title in titles if substring_match(question, [_BRACKETS.sub("", title)])]
        if len(named) == 1:
            return {title: 1 if title in named else 2 for title in titles}
    return dict.fromkeys(titles, UNKNOWN)


def decomposition_hops(steps: Sequence[Mapping[str, Any]], where: str) -> dict[int, int]:
    """MuSiQue's hops by the paragraph's `idx`: a step that refers to answers `#1`, `#2` is one hop behind the furthest.

    Raises:
        InputError: a step is not as published, or refers to itself or a later one.
    """
    depths: list[int] = []
    hops: dict[int, int] = {}
    for number, step in enumerate(steps, 1):
        try:
            needed = [int(reference) for reference in _REFERENCE.findall(step["question"])]
            paragraph = int(step["paragraph_support_idx"])
            depths.append(1 + max((depths[n - 1] for n in needed if n >= 1), default=0))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{where}: question_decomposition step {number} is {step!r:.80} ({error!r}); expected question, "
                "which may refer to the answers of "
                "earlier steps as #1, and paragraph_support_idx; use --skip-bad to leave the row out"
            ) from error
        hops[paragraph] = min(depths[-1], hops.get(paragraph, depths[-1]))
    return hops
