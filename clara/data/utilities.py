"""UTILITIES: the likelihood of a question's answer given each candidate alone, scored while the reader does not change.

The values hold until the reader or the vectors of MEMORY change (`clara.memory.identity`): until then a query reasoner
trains for many epochs at the price of its passes alone. One folder of a shard holds one Parquet file.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clara.config.roles import GENERATOR
from clara.errors import InputError
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of, write_file
from clara.storage.paths import Name
from clara.storage.tables import read_records, table_bytes

KIND = "UTILITIES"
FILE = "utilities.parquet"
_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("row_ids", pa.list_(pa.int64())),
        ("log_likelihoods", pa.list_(pa.float32())),
        ("without", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Scored:
    """One question's pool.

    Attributes:
        question_id: of the question.
        row_ids: the pool, rows of MEMORY.
        log_likelihoods: of the whole answer in nats, given each row alone.
        without: of the answer given no document; what is above it is the row's solo utility.
    """

    question_id: str
    row_ids: tuple[int, ...]
    log_likelihoods: tuple[float, ...]
    without: float

    def __post_init__(self) -> None:
        if len(self.row_ids) != len(self.log_likelihoods) or not self.row_ids:
            raise InputError(
                f"utilities of question {self.question_id!r}: {len(self.row_ids)} rows, {len(self.log_likelihoods)} "
                "likelihoods; expected equal numbers, at least one of each; score the questions again"
            )


def reader_hash(checkpoint: Name | Artefact) -> str:
    """Hash of what the likelihood depends on beside the memory: backbone, generator, prompts."""
    manifest = Artefact.open(checkpoint, "CHECKPOINT", lazy=True).manifest
    folder = f"{manifest['roles'][GENERATOR]}/"
    files = {
        f["path"].removeprefix(folder): f["sha256"]
        for f in manifest["files"]
        if f["path"].startswith(folder) or f["path"].startswith("added_tokens")
    }
    return hash_of([files, manifest["prompts"], manifest["backbone"]["sha256"], manifest["tokenizer"]])


def write_shard(directory: str | os.PathLike[str], name: str, scored: Sequence[Scored]) -> dict[str, Any]:
    """Write one shard, whole or not at all, and return its manifest entry."""
    return write_file(directory, f"{name}/{FILE}", table_bytes(scored, _SCHEMA), len(scored))


def read_utilities(source: Name | Artefact) -> dict[str, Scored]:
    """The pools of an artefact by question id.

    Raises:
        InputError: no finished UTILITIES there, or a shard is damaged.
    """
    artefact = Artefact.open(source, KIND)
    rows: Iterable[dict[str, Any]] = (
        row for entry in artefact.manifest["files"] for row in read_records(artefact.folder / entry["path"])
    )
    return {row["question_id"]: Scored(**row) for row in rows}
