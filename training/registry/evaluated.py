"""What the evaluation that a version was registered with says of it, question by question."""

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clara.data.questions import target_of
from clara.errors import InputError
from clara.intervals import group_numbers
from clara.tracking.database import reason_of
from training.evaluation.files import PER_QUESTION
from training.registry.registration import EVALUATION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_SIZED = ("checkpoint", "memory", "index")
Row = Mapping[str, Any]
Asked = Mapping[str, tuple[Any, ...]]
"""Each question's wording, answers and right documents, by question id."""


@dataclass(frozen=True)
class Held:
    """What a version's evaluation says: each question's wording and answers, and the measure, by question id."""

    asked: dict[str, tuple[Any, ...]]
    values: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """A version's evaluation on one split.

    Attributes:
        label: of the version, for errors.
        system: its name in the evaluation.
        rows: of every system of the evaluation, by its name: one a question.
        sizes: of the version's artefacts, as `memory.bytes`.
    """

    label: str
    system: str
    rows: Mapping[str, Sequence[Row]]
    sizes: Mapping[str, float] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, tuple[Any, ...]]:
        """See `Asked`."""
        own = self.rows[self.system]
        return {row["question_id"]: (row["question"], tuple(row["answers"]), tuple(row["positive_ids"])) for row in own}

    def values(self, measure: str, system: str = "") -> dict[str, float]:
        """A measure of a system by question id, of the questions that have it; empty: of the version itself.

        A size is the same for each question.
        """
        if measure in self.sizes:
            return dict.fromkeys(self.asked, self.sizes[measure])
        rows = self.rows.get(system or self.system, ())
        found = {row["question_id"]: row.get(measure) for row in rows}
        return {name: value for name, value in found.items() if isinstance(value, float) and math.isfinite(value)}

    def known(self) -> list[str]:
        """Names of all measures of the version."""
        return [*(name for name in self.rows[self.system][0] if "." in name), *self.sizes]

    def held(self, measure: str) -> Held:
        """One measure of the version.

        Raises:
            InputError: the evaluation has no such measure.
        """
        if measure not in self.known():
            raise InputError(f"--measure {measure!r}: the evaluation has {', '.join(self.known())}; name one of them")
        return Held(self.asked, self.values(measure))


def evaluated(client: "MlflowClient", version: "ModelVersion", split: str) -> Evaluated:
    """The evaluation that a version was registered with.

    Raises:
        InputError: the version was not registered by `training.register`, or its evaluation has no such split.
    """
    label = f"{version.name} version {version.version}"
    system = version.tags.get("clara.system")
    if system is None or not version.run_id:
        raise InputError(f"{label}: no evaluation is known of it; register it with python -m training.register")
    with tempfile.TemporaryDirectory() as folder:
        every = pq.read_table(evaluation_file(client, version, PER_QUESTION, folder)).to_pylist()
    rows: dict[str, list[Row]] = {}
    for row in every:
        if row["split"] == split:
            rows.setdefault(row["system"], []).append(row)
    if system not in rows:
        splits = sorted({row["split"] for row in every if row["system"] == system})
        raise InputError(f"{label}: no question with split {split!r}; there are {splits}; name one with --split")
    sizes = {f"{kind}.bytes": version.tags.get(f"clara.{kind}_bytes", "") for kind in _SIZED}
    return Evaluated(label, system, rows, {name: float(size) for name, size in sizes.items() if size})


def evaluation_file(client: "MlflowClient", version: "ModelVersion", name: str, folder: str) -> Path:
    """A file of the evaluation that a version was registered with, copied into a folder.

    Raises:
        InputError: its run has none.
    """
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(str(version.run_id), f"{EVALUATION}/{name}", folder))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{version.name} version {version.version}: its run {version.run_id} has no {EVALUATION}/{name} "
            f"({reason_of(error)}); register it again"
        ) from error


def target_numbers(asked: Asked, names: Collection[str]) -> NDArray[np.int64]:
    """Number of each question's target, see `target_of`."""
    return group_numbers(target_of(name, asked[name][2]) for name in names)
