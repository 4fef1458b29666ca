"""Memory tokens, markers and the residual's gate: parameters that appear in prompts without being vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MemorySlots(nn.Module):
    """Parameters that occur in prompts without being vocabulary: memory tokens, markers, and the gate of the residual.

    They are handed out by the forward pass, as ZeRO-3 wants: elsewhere its partitioned parameters are empty.
    """

    def __init__(self, num_memory_tokens: int, embedding_VD: Tensor) -> None:
        super().__init__()
        weights = embedding_VD.detach().float()
        mean, std = weights.mean(dim=0), weights.std(dim=0)
        self.memory_tokens = nn.Parameter(mean + std * torch.randn(num_memory_tokens, weights.shape[1]))
        self.markers = nn.Parameter(mean + std * torch.randn(2, weights.shape[1]))
        # The normalised state has unit root mean square, embeddings less. An untrained state is noise: it starts small
        # beside the segment means, which can be read at once (at half their size, 960 documents of pretraining had not
        # made memory readable).
        self.gate = nn.Parameter(torch.full((num_memory_tokens,), 0.1 * float(weights.square().mean().sqrt())))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Memory tokens `[M, D]`, markers `[2, D]` (start of a text, end of a memory), gate `[M]`."""
        return self.memory_tokens.clone(), self.markers.clone(), self.gate.clone()


def segment_shares(num_tokens: Sequence[int], start: int, num_segments: int, length: int) -> Tensor:
    """Weights that average each of a text's equal segments: `[B, segments, length]` in float64, rows sum to one.

    Segment m of n tokens covers tokens ⌊m·n/S⌋ to ⌊(m+1)·n/S⌋, and one at least.
    """
    shares = torch.zeros(len(num_tokens), num_segments, length, dtype=torch.float64)
    for row, count in enumerate(num_tokens):
        for segment in range(num_segments):
            begin = segment * count // num_segments
            end = max(begin + 1, (segment + 1) * count // num_segments)
            shares[row, segment, start + begin : start + end] = 1.0 / (end - begin)
    return shares
