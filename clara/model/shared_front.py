"""What the prompts of a batch begin with, which the LM then reads once."""

from collections.abc import Sequence
from itertools import takewhile

from clara.model.prompts import Prompt


def num_shared_tokens(prompts: Sequence[Prompt], num_memories: Sequence[int]) -> int:
    """Tokens that all prompts begin with: before the slots of any memory and the last token before any answer.

    0 where there is one prompt only.

    Args:
        prompts: see `Prompt`.
        num_memories: of each.
    """
    fronts = [p.left if k else [*p.left, *p.right][:-1] for p, k in zip(prompts, num_memories, strict=True)]
    equal = takewhile(lambda tokens: len({*tokens}) == 1, zip(*fronts, strict=False))
    return sum(1 for _ in equal) if len(fronts) > 1 else 0
