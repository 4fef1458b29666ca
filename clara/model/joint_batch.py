"""What a step of stage `joint` takes: questions, their prompts, and the memory of their candidates.

Shapes: B questions, N candidates, S rows that are not read, M memory tokens, D hidden size, F numbers of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from clara.model.prompts import Prompt


class AnswerBatch:
    """A batch whose loss is over the answers of its prompts."""

    prompts: list[Prompt]

    @property
    def weight(self) -> float:
        """Sum of the answer tokens' weights: this micro-step's share of the normaliser."""
        return sum(sum(p.weights) for p in self.prompts)


@dataclass(frozen=True)
class Unread:
    """S rows that no question of a batch reads, and that enter the softmax of its retrieval losses.

    Attributes:
        unit: their unit vectors `[S, F]` under the score, constants (`clara.model.geometry.represent`).
        log_weight: `[B, S]`, log of how often a row counts for a question; −inf: not at all, as the question excludes
            it or its own pool holds it.
        features: `[B, S, f]`, scores by other rankers; None where the fused score weighs none.
    """

    unit: Tensor
    log_weight: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class TextPool:
    """A question whose generator reads text: the texts of its N candidates, in their order."""

    question: str
    answer: str
    passages: list[str]


@dataclass(frozen=True)
class JointBatch(AnswerBatch):
    """Questions with their pools.

    Attributes:
        questions: token ids of each question, for the query reasoner.
        prompts: each question with its answer, for the generator.
        memory: stored memory of the candidates `[B, N, M, D]`, a constant.
        valid: `[B, N]`, false where a pool has fewer than N.
        positive: `[B, N]`, known positives (for `labels`, and for logging).
        candidates: token ids of every candidate, `B` lists of `N`, where the compressor trains in this step; else
            empty.
        compressor_frozen: the compressor trains in other steps, but not in this one.
        right_memory: a known positive's memory `[M, D]` that replaces the last selected one, or None.
        utilities: `[B, N]` answer log-likelihoods scored beforehand, or None to score in the step.
        without: `[B]`, that of the answer given no document, where utilities were scored beforehand.
        corpus_mean: mean `[M, D]` of the MEMORY that the candidates are from, if the score is centred.
        features: `[B, N, F]`, scores of the candidates by other rankers; None where the fused score weighs none.
        texts: `B` pools, where the generator reads text (`joint.reads`); else empty.
        unread: further rows in the denominator of the labels' and the utilities' loss; None: the pool alone.
    """

    questions: list[list[int]]
    prompts: list[Prompt]
    memory: Tensor
    valid: Tensor
    positive: Tensor
    candidates: list[list[list[int]]] = field(default_factory=list)
    compressor_frozen: bool = False
    right_memory: Sequence[Tensor | None] = ()
    utilities: Tensor | None = None
    corpus_mean: Tensor | None = None
    features: Tensor | None = None
    without: Tensor | None = None
    texts: Sequence[TextPool] = ()
    unread: Unread | None = None
