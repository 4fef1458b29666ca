"""Geometry of the score: how the vectors of a question and of a row are compared.

`[M, D]` is pooled to one vector of F numbers (M·D flattened, or D as the mean over the slots), the mean of its kind is
subtracted if the score is centred, and it is divided by its length. The score is the inner product of two of these.
The corpus' mean is part of MEMORY. The questions' mean is part of the CHECKPOINT, and the model subtracts it
(`clara.model.model.ClaraModel.encode_questions`): query vectors outside of the model are centred.

Shapes: B questions, N candidates, n rows, M memory tokens, D hidden size, F = M·D or D.
"""

import torch
from torch import Tensor, nn

from clara.config.model import Score
from clara.model.array_geometry import PUBLISHED, centre, pool
from clara.model.precision import widened


def represent(vectors: Tensor, score: Score = PUBLISHED, mean: Tensor | None = None) -> Tensor:
    """Unit vectors `[…, F]` of vectors `[…, M, D]`, in float32 at least; a zero vector stays zero.

    Args:
        vectors: memory of rows, or query vectors of the model.
        score: the score.
        mean: the corpus' mean `[M, D]` for rows of a centred score, else None.
    """
    pooled = pool(widened(vectors), score)
    if mean is not None:
        pooled = centre(pooled, pool(widened(mean), score))
    return nn.functional.normalize(pooled, dim=-1)


def cosine(
    query_BMD: Tensor, memory_BNMD: Tensor, score: Score = PUBLISHED, corpus_mean_MD: Tensor | None = None
) -> Tensor:
    """Scores `[B, N]` of questions with their own candidates, in float32 at least.

    Args:
        query_BMD: query vectors of the model, which has subtracted the questions' mean if the score is centred.
        memory_BNMD: memory of the candidates.
        score: the score.
        corpus_mean_MD: mean of the corpus, if the score is centred.
    """
    query_BF, memory_BNF = represent(query_BMD, score), represent(memory_BNMD, score, corpus_mean_MD)
    return torch.einsum("bf,bnf->bn", query_BF, memory_BNF)


class QuestionMean(nn.Module):
    """Subtracts the questions' mean if the score is centred; a module, because ZeRO-3 gathers parameters in forward.

    Attributes:
        mean: `[M, D]`, zero until it is known; None if the score is not centred.
    """

    def __init__(self, score: Score, num_memory_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_memory_tokens, hidden_size)) if score.centred else None

    def forward(self, query_BMD: Tensor) -> Tensor:
        """Query vectors `[B, M, D]`, centred if the score is."""
        if self.mean is None:
            return query_BMD
        return centre(query_BMD.flatten(1), widened(self.mean).flatten()).view_as(query_BMD)
