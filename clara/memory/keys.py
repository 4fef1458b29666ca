"""Index keys: a seeded random projection of the normalised memory."""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clara.arrays import Floats
from clara.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeyProjection:
    """Seeded random projection of the flattened, normalised memory to a short key.

    Slot m has a random frame Q_m `[D, r_m]` with orthonormal columns, Σ r_m = KD, and key = concat_m √(D / r_m) · Q_mᵀ
    v_m, where v is the memory `[M, D]` divided by its norm over all M·D numbers. As E[Q_m Q_mᵀ] = (r_m / D) I, the
    inner product of two keys is in expectation the flattened cosine; with KD = M·D it is that cosine exactly. The
    frames hold about D·KD numbers, M times fewer than one matrix `[M·D, KD]`, and when slots have equal norms no larger
    variance.
    """

    frames: tuple[Floats, ...]

    def keys(self, memory: "Floats | Tensor") -> Floats:
        """Keys `[n, KD]` of memories `[n, M, D]`; a memory of zeros has a key of zeros."""
        array = memory if isinstance(memory, np.ndarray) else memory.detach().float().cpu().numpy()
        values = np.asarray(array, np.float32)
        norms = np.sqrt(np.square(values, dtype=np.float32).sum(axis=(1, 2), keepdims=True))
        unit = values / np.where(norms > 0, norms, 1.0)
        return np.concatenate([unit[:, slot] @ frame for slot, frame in enumerate(self.frames)], axis=1)


@functools.lru_cache(maxsize=4)
def key_projection(num_memory_tokens: int, hidden_size: int, key_size: int, seed: int) -> KeyProjection:
    """The projection of a fingerprint's `key_size` and `key_seed`.

    Raises:
        InputError: `key_size` is not between M and M·D.
    """
    if not num_memory_tokens <= key_size <= num_memory_tokens * hidden_size:
        raise InputError(
            f"key_size is {key_size}, expected M ≤ key_size ≤ M·D, "
            f"here {num_memory_tokens} to {num_memory_tokens * hidden_size}; choose one between"
        )
    # RandomState's stream is frozen for good, unlike Generator's: old keys keep their meaning.
    random = np.random.RandomState(seed)
    frames = []
    for slot in range(num_memory_tokens):
        width = key_size // num_memory_tokens + (slot < key_size % num_memory_tokens)
        orthonormal, upper = np.linalg.qr(random.standard_normal((hidden_size, width)))
        signs = np.where(np.diag(upper) < 0, -1.0, 1.0)  # without it the frame's signs are LAPACK's choice
        frames.append((orthonormal * signs * math.sqrt(hidden_size / width)).astype(np.float32))
    return KeyProjection(tuple(frames))


DEFAULT_KEY_SIZE = 256
