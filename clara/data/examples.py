"""EXAMPLES: what the compressor is pretrained on, as one Parquet file."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clara.data.records import input_text
from clara.errors import InputError
from clara.storage.artefact import Artefact
from clara.storage.manifest import file_entry, make_directory, refuse_other, write_file, write_manifest
from clara.storage.paths import Name, is_url
from clara.storage.tables import read_records, read_table, records, table_bytes

FILE = "examples.parquet"
_ROWS_A_GROUP = 4096
KINDS = ("qa", "paraphrase", "autoencode", "cloze")
_STRINGS = pa.list_(pa.string())
_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("document_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("kind", pa.string()),
        ("questions", _STRINGS),
        ("answers", _STRINGS),
    ]
)


@dataclass(frozen=True)
class Example:
    """A document and what the generator learns to answer or reproduce from its memory.

    Attributes:
        kind: `qa` and `cloze` hold questions, each with its answer; `paraphrase` one answer, the text in other words;
            `autoencode` neither: the document itself is the answer.
    """

    example_id: str
    document_id: str
    title: str
    text: str
    kind: str
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"example {self.example_id}"
        if self.kind not in KINDS:
            raise InputError(f"{where}: kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        if not self.text:
            raise InputError(f"{where}: empty text; leave the document out")
        pairs = len(self.questions), len(self.answers)
        if self.kind in ("qa", "cloze") and (pairs[0] != pairs[1] or not pairs[0]):
            raise InputError(
                f"{where}: {pairs[0]} questions and {pairs[1]} answers; kind {self.kind} needs equal "
                "numbers, at least one of each"
            )
        if (self.kind == "paraphrase" and pairs != (0, 1)) or (self.kind == "autoencode" and pairs != (0, 0)):
            raise InputError(
                f"{where}: {pairs[0]} questions and {pairs[1]} answers; paraphrase has no question and one answer, "
                "autoencode neither"
            )

    @property
    def document(self) -> str:
        """What the compressor reads."""
        return input_text(self.title, self.text)


def write_examples(
    directory: str | os.PathLike[str],
    examples: Iterable[Example],
    *,
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an EXAMPLES artefact and return its manifest."""
    refuse_other(directory, "EXAMPLES")
    rows = list(examples)
    if not is_url(directory):
        make_directory(directory)
    entry = write_file(directory, FILE, table_bytes(rows, _SCHEMA), len(rows))
    kinds = Counter(e.kind for e in rows)
    return write_manifest(
        directory,
        kind="EXAMPLES",
        files=[entry],
        recipe=recipe,
        counts={"examples": len(rows), **{f"kind {k}": n for k, n in sorted(kinds.items())}, **(counts or {})},
    )


def write_part(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Write some of an artefact's examples, for `join_examples`."""
    Path(path).write_bytes(table_bytes(examples, _SCHEMA))


def join_examples(
    directory: str | os.PathLike[str],
    parts: Iterable[str | os.PathLike[str]],
    *,
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
    extra_files: Iterable[Mapping[str, Any]] = (),
    **fields: Any,
) -> dict[str, Any]:
    """Write EXAMPLES out of files of `write_part`, with one of them in RAM at a time. Returns the manifest."""
    refuse_other(directory, "EXAMPLES")
    path, kinds, waiting = make_directory(directory) / FILE, Counter[str](), _SCHEMA.empty_table()
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for part in parts:
            table = read_table(part)
            kinds.update(table.column("kind").to_pylist())
            waiting = pa.concat_tables([waiting, table])
            while waiting.num_rows > _ROWS_A_GROUP:  # whatever the parts were: bytes depend on the examples alone
                writer.write_table(waiting.slice(0, _ROWS_A_GROUP).combine_chunks())
                waiting = waiting.slice(_ROWS_A_GROUP)
        writer.write_table(waiting.combine_chunks())
    return write_manifest(
        directory,
        kind="EXAMPLES",
        files=[file_entry(directory, FILE, kinds.total()), *extra_files],
        recipe=recipe,
        counts={"examples": kinds.total(), **{f"kind {k}": n for k, n in sorted(kinds.items())}, **(counts or {})},
        **fields,
    )


def read_examples(source: Name | Artefact) -> list[Example]:
    """The examples of an artefact, in file order.

    Raises:
        InputError: no finished EXAMPLES there, or it holds none.
    """
    artefact = Artefact.open(source, "EXAMPLES")
    rows = read_records(artefact.folder / FILE)
    if not rows:
        raise InputError(f"{artefact.folder}: holds no example; make it from a corpus with text")
    return [Example(**row) for row in rows]


def each_example(source: Name | Artefact) -> Iterator[Example]:
    """The examples of an artefact in file order, some of them in RAM at a time.

    Raises:
        InputError: no finished EXAMPLES there, or a damaged file.
    """
    path = Artefact.open(source, "EXAMPLES").folder / FILE
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS_A_GROUP):
            batch.validate(full=True)
            for row in records(batch):
                yield Example(**row)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not readable as Parquet ({error}); make the artefact again, or copy it again"
        ) from error
