"""A cheap correction of stored memory between two refreshes: a linear map from stored to fresh memory, fitted on the canary set.

One matrix `[D, D]` for all slots of a version: M matrices would need M times the canary rows, and cost as much to
apply. A pool then costs N·M·D² products, about N·M / (parameters / D²) of one token's pass; encoding it afresh costs
its tokens' passes.

Shapes: n rows, Q questions, M memory tokens, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from clara.errors import InputError
from clara.index.search import best, unit_rows
from clara.memory.codec import Floats
from clara.storage.artefact import atomic_write

_LEAST_ROWS = 4
_FILE = "correction-{}.safetensors"
_KEPT_FILES = 4


@dataclass(frozen=True)
class Correction:
    """Fresh memory is about `stored + stored · A` for rows of a version that has an A; others stay as they are.

    Attributes:
        maps: A `[D, D]` by the version's fingerprint.
    """

    maps: Mapping[str, Floats]

    def apply(self, memory: Floats, made_by: Sequence[str]) -> Floats:
        """Corrected memory `[n, M, D]` of stored memory, whose rows these fingerprints made."""
        out = memory.copy()
        for fingerprint, matrix in self.maps.items():
            rows = np.flatnonzero(np.array([made == fingerprint for made in made_by], bool))
            out[rows] += memory[rows] @ matrix
        return out

    def save(self, directory: Path, step: int) -> str:
        """Keep it for a run state, under the step that it was fitted after; the oldest of such files go. Returns the file's name."""
        path = directory / _FILE.format(f"{step:08d}")
        if not path.is_file():
            atomic_write(path, safetensors.numpy.save(dict(self.maps)))
            for old in sorted(directory.glob(_FILE.format("*")))[:-_KEPT_FILES]:
                old.unlink()
        return path.name

    @classmethod
    def load(cls, path: Path) -> "Correction":
        """Read what `save` wrote.

        Raises:
            InputError: missing or damaged.
        """
        try:
            return cls(safetensors.numpy.load(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: not readable ({error}); remove the newest folder of run_state to resume from the one before"
            ) from error


def fit(stored: Floats, fresh: Floats, ridge: float) -> Floats:
    """The A `[D, D]` that makes Σ ‖stored + stored·A − fresh‖² + λ ‖A‖² least, λ = `ridge` · Σ stored² / D.

    Args:
        stored: `[n, M, D]`.
        fresh: `[n, M, D]`.
        ridge: see above; without pairs to go by, A is zero.
    """
    size = stored.shape[-1]
    given = stored.reshape(-1, size).astype(np.float64)
    moved = fresh.reshape(-1, size).astype(np.float64) - given
    weight = ridge * float(np.square(given).sum()) / size
    if len(given) >= size:
        matrix = np.linalg.solve(given.T @ given + weight * np.eye(size), given.T @ moved)
    else:  # the same by the smaller system
        matrix = given.T @ np.linalg.solve(given @ given.T + weight * np.eye(len(given)), moved)
    return matrix.astype(np.float32)


@dataclass(frozen=True)
class Fitted:
    """A correction, and the overlap of the K best of held-out rows with those by fresh memory: as stored, and corrected."""

    correction: Correction
    overlap_stored: float
    overlap_corrected: float

    @property
    def better(self) -> bool:
        """Whether it is to be taken."""
        return self.overlap_corrected > self.overlap_stored


def fit_and_test(
    query: Floats, stored: Floats, fresh: Floats, made_by: Sequence[str], *, ridge: float, num_selected: int
) -> Fitted | None:
    """Fit a correction on every second row and test it on the others. None where there are too few rows.

    Args:
        query: `[Q, M, D]`.
        stored: `[n, M, D]`.
        fresh: `[n, M, D]`.
        made_by: fingerprint of each stored row; each gets a map of its own.
        ridge: see `fit`.
        num_selected: K.
    """
    place = np.arange(len(stored))
    fitted, held_out = place[::2], place[1::2]
    maps = {}
    for fingerprint in sorted(set(made_by)):
        rows = fitted[[made_by[row] == fingerprint for row in fitted]]
        if len(rows) >= _LEAST_ROWS:
            maps[fingerprint] = fit(stored[rows], fresh[rows], ridge)
    if not maps or len(held_out) < 2:
        return None
    correction = Correction(maps)
    corrected = correction.apply(stored[held_out], [made_by[row] for row in held_out])
    k = min(num_selected, len(held_out) - 1)
    wanted, as_stored, as_corrected = (_best(query, m, k) for m in (fresh[held_out], stored[held_out], corrected))
    return Fitted(correction, _overlap(as_stored, wanted), _overlap(as_corrected, wanted))


def _best(query: Floats, memory: Floats, k: int) -> NDArray[np.intp]:
    scores = unit_rows(query) @ unit_rows(memory).T
    return np.stack([best(row, np.arange(len(memory)), k) for row in scores])


def _overlap(one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(one, other, strict=True)]))
