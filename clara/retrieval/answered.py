"""An answered question and its passages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clara.config.model import FeatureName


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk and its score for the question; `sources` and `contributions` as those of a `Hit`."""

    row_id: int
    document_id: str
    title: str
    text: str
    score: float
    sources: tuple[FeatureName, ...] = ()
    contributions: Mapping[FeatureName, float] = field(default_factory=dict)

    @property
    def why(self) -> Mapping[FeatureName, float]:
        """What each source adds to the score z, in logits: `contributions`."""
        return self.contributions


@dataclass(frozen=True)
class Answered:
    """A question, the generated answer, and the passages that it was read from, best first.

    `unread` is the end of the question, where it is too long for the query reasoner; the generator reads all of it.
    """

    question: str
    answer: str
    passages: tuple[Passage, ...]
    unread: str = ""

    @property
    def text(self) -> str:
        """The answer."""
        return self.answer
