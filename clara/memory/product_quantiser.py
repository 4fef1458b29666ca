"""Product quantisation of memory: each memory token, divided by its scale, becomes one byte for every few numbers."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from clara.arrays import Floats
from clara.errors import InputError
from clara.storage import base, folders, paths

Bytes = NDArray[np.uint8]

CODEBOOK = "codebook"
FILE = f"{CODEBOOK}/centroids.safetensors"
NUM_CENTROIDS = 256
_SEED = 0
_SAMPLE_TOKENS = 64 * NUM_CENTROIDS  # FAISS asks for 39 a centroid at least


def padded(memory: Floats, width: int) -> Floats:
    """Memory `[…, D]` with zeros behind, up to the next multiple of `width` numbers."""
    missing = -memory.shape[-1] % width
    return np.pad(memory, [(0, 0)] * (memory.ndim - 1) + [(0, missing)]) if missing else memory


def scales(memory: Floats) -> Floats:
    """Root mean square `[…]` of each memory token `[…, D]`; 1 where it is zero, so that it can be divided by."""
    mean: Floats = np.sqrt(np.square(memory, dtype=np.float64).mean(axis=-1)).astype(np.float32)
    return np.where(mean > 0, mean, np.float32(1))


@dataclass(frozen=True)
class Codebook:
    """Centroids `[S, 256, width]`: byte s of a memory token names the centroid of its numbers from `width`·s on."""

    centroids: Floats

    @property
    def width(self) -> int:
        """Numbers that one byte encodes."""
        return int(self.centroids.shape[2])

    @cached_property
    def hash(self) -> str:
        """Sha256 (hex) of the centroids."""
        return hashlib.sha256(np.ascontiguousarray(self.centroids).tobytes()).hexdigest()

    def encode(self, memory: Floats) -> tuple[Bytes, Floats]:
        """Codes `[n, M, S]` and scales `[n, M]` of memory `[n, M, D]`: in each piece the centroid nearest to it."""
        import faiss  # here and below: where memory is only decoded it is not needed

        scale = scales(memory)
        unit = padded(memory / scale[..., None], self.width)
        num_pieces = len(self.centroids)
        quantiser = faiss.ProductQuantizer(num_pieces * self.width, num_pieces, 8)
        faiss.copy_array_to_vector(self.centroids.ravel(), quantiser.centroids)
        codes: Bytes = quantiser.compute_codes(np.ascontiguousarray(unit.reshape(-1, unit.shape[-1])))
        return codes.reshape(*memory.shape[:2], num_pieces), scale

    def decode(self, codes: Bytes, scale: Floats, hidden_size: int) -> Floats:
        """Memory `[n, M, D]` of what `encode` gave."""
        found = self.centroids[np.arange(len(self.centroids)), codes]
        memory: Floats = (
            found.reshape(*codes.shape[:-1], codes.shape[-1] * self.width)[..., :hidden_size] * scale[..., None]
        )
        return memory


def num_sampled(num_memory_tokens: int) -> int:
    """Chunks that a codebook is trained on."""
    return -(-_SAMPLE_TOKENS // num_memory_tokens)


def sample_order(row_id: int) -> str:
    """Key by which chunks are sampled, smallest first: depends on seed and row only, not on runners or shards."""
    return hashlib.sha256(f"{_SEED}:{row_id}".encode()).hexdigest()


def sample_rows(row_ids: Sequence[int], num_memory_tokens: int) -> list[int]:
    """The rows that a codebook for these is trained on, ascending."""
    return sorted(sorted(row_ids, key=sample_order)[: num_sampled(num_memory_tokens)])


def train_codebook(memory: Floats, width: int) -> Codebook:
    """The codebook of memory `[n, M, D]`, one byte for `width` numbers; on one machine the same bits each time.

    Raises:
        InputError: fewer memory tokens than centroids.
    """
    import faiss

    tokens = memory.reshape(-1, memory.shape[-1])
    if len(tokens) < NUM_CENTROIDS:
        raise InputError(
            f"codec pq{width}: {len(tokens)} memory tokens to train on, expected at least {NUM_CENTROIDS}; "
            "use int4 for so small a corpus"
        )
    unit = np.ascontiguousarray(padded(tokens / scales(tokens)[:, None], width))
    quantiser = faiss.ProductQuantizer(unit.shape[1], unit.shape[1] // width, 8)
    quantiser.cp.seed = _SEED
    quantiser.cp.min_points_per_centroid = 1  # only a warning's threshold
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums in the order of one thread
    try:
        quantiser.train(unit)
    finally:
        faiss.omp_set_num_threads(threads)
    centroids: Floats = faiss.vector_to_array(quantiser.centroids).reshape(-1, NUM_CENTROIDS, width)
    return Codebook(centroids)


def save_codebook(directory: str | os.PathLike[str], codebook: Codebook) -> None:
    """Write the codebook of a MEMORY."""
    folders.atomic_write(paths.join(directory, FILE), safetensors.numpy.save({"centroids": codebook.centroids}))


def load_codebook(directory: str | os.PathLike[str], width: int, hidden_size: int) -> Codebook:
    """The codebook of a MEMORY.

    Raises:
        InputError: missing, damaged, or of another shape.
    """
    path = paths.join(directory, FILE)
    shape = (-(-hidden_size // width), NUM_CENTROIDS, width)
    try:
        centroids = safetensors.numpy.load(folders.folder(directory).read(FILE) or b"")["centroids"]
    except base.StorageError:
        raise
    except (OSError, KeyError, ValueError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path}: not a readable codebook ({error}); make the MEMORY again, or copy it again"
        ) from error
    if centroids.shape != shape or centroids.dtype != np.float32:
        raise InputError(
            f"{path}: centroids are {centroids.dtype} {list(centroids.shape)}, expected float32 {list(shape)}; "
            "make the MEMORY again"
        )
    return Codebook(centroids)
