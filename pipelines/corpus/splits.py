"""Input of a corpus job: files named by globs, as units of work; the dead letter of an unused record."""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clara.data.corpus import FORMATS, SUFFIXES, format_by_content, format_of, parquet_or, records
from clara.data.fields import FIELDS, Fields
from clara.data.json_records import is_json_lines
from clara.data.streams import COMPRESSIONS, DAMAGE, as_utf8, compression_of, decompressed, refuse_other
from clara.data.table_records import check_schema, open_parquet
from clara.errors import InputError
from clara.storage.folders import sha256_file
from clara.storage.paths import is_url
from pipelines.corpus import mediawiki
from pipelines.corpus.files import exists, list_files, open_file, size_and_change

UNIT_BYTES = 16 * 2**20
"""Bytes of a large JSONL file per unit: small enough for all cores to have some, large beside a unit's overhead."""
_BLOCK_BYTES = 2**20
_LOG = logging.getLogger(__name__)
_HEAD_BYTES = 512


@dataclass(frozen=True)
class Unit:
    """A unit of work for one reader: a file, lines of a JSONL file, a Parquet row group, or a stream of a dump.

    Attributes:
        path: absolute path or URL.
        name: path as the user gave it; the source of every record.
        format: one of `FORMATS`.
        compression: `gzip`, `bz2`, `zstd`, `xz` or empty.
        row_group: of a Parquet file.
        first_line: number of the unit's first line, row or page.
        stream: of a multistream dump.
        unread_links: the wiki's names of links that are no prose, if the unit itself does not contain them.
        start: byte of a JSONL file at which the unit's first line begins.
        end: byte after its last line; −1: end of file.
    """

    path: str
    name: str
    format: str
    compression: str = ""
    row_group: int = 0
    first_line: int = 1
    stream: mediawiki.Stream | None = None
    unread_links: tuple[str, ...] = ()
    start: int = 0
    end: int = -1


def find_units(patterns: Sequence[str], file_format: str, fields: Fields = FIELDS) -> list[Unit]:
    """The units that globs name, by path, each once.

    Args:
        patterns: local paths (relative ones too) or URLs that Beam's file systems know.
        file_format: one of `FORMATS`, or `auto`: by the file name's ending.
        fields: names of a record's fields, which the columns of tables are checked for.

    Raises:
        InputError: a glob that matches nothing, an unknown ending, an unknown format, or a table without these columns.
    """
    if file_format not in ("auto", *FORMATS):
        raise InputError(f"--format {file_format!r}: expected auto, {', '.join(FORMATS)}")
    names: dict[str, str] = {}
    for found in (path for pattern in patterns for path in list_files(pattern)):
        keep = is_url(found) or os.path.isabs(found)
        names.setdefault(found if keep else os.path.abspath(found), found if keep else os.path.relpath(found))
    dumps = [path for path in sorted(names) if not mediawiki.is_index(path)]
    if not dumps:
        raise InputError(
            f"--input {' '.join(patterns)}: names nothing but the index of a dump; give the dump, "
            "whose index is found beside it"
        )
    return [unit for path in dumps for unit in _units_of(path, names[path], file_format, fields)]


def _units_of(path: str, name: str, file_format: str, fields: Fields) -> list[Unit]:
    kind = format_of(path) if file_format == "auto" else file_format
    compression, head = COMPRESSIONS.get(os.path.splitext(path.lower())[1], ""), b""
    if not is_url(path):
        with contextlib.suppress(OSError), open(path, "rb") as stream:  # its reader reports the error
            compression = compression_of(path, stream.read(_HEAD_BYTES))
        with contextlib.suppress(*DAMAGE), open(path, "rb") as stream, decompressed(stream, compression) as content:
            head = content.read(_HEAD_BYTES)
    refuse_other(name, head)
    kind = parquet_or(kind, head) or format_by_content(head)
    if not kind:
        raise InputError(
            f"{name}: its format is not known from its name ({', '.join(SUFFIXES)}, with {', '.join(COMPRESSIONS)}), "
            f"nor from its beginning; give --format ({', '.join(FORMATS)})"
        )
    if kind == "mediawiki":
        return _streams_of(path, name, compression)
    if kind in ("jsonl", "json") and not compression and not is_url(path):
        return [
            Unit(path, name, kind, first_line=line, start=start, end=end)
            for start, end, line in line_ranges(path, UNIT_BYTES)
        ]
    if kind in ("csv", "tsv"):
        _check_table(path, name, kind, compression, fields)
    return _row_groups(path, name, compression, fields) if kind == "parquet" else [Unit(path, name, kind, compression)]


def _check_table(path: str, name: str, kind: str, compression: str, fields: Fields) -> None:
    """Check the names of a table's columns; its reader reports damage."""
    try:
        with open_file(path) as raw, decompressed(raw, compression) as stream:
            next(records(stream, kind, fields, name), None)
    except DAMAGE:
        return


def _row_groups(path: str, name: str, compression: str, fields: Fields) -> list[Unit]:
    try:
        with open_file(path) as raw, decompressed(raw, compression) as stream:
            file = open_parquet(stream)
            rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            schema = file.schema_arrow
    except DAMAGE:
        return [Unit(path, name, "parquet", compression)]  # the reader reports the error as a dead letter
    check_schema(name, schema, fields)
    return [
        Unit(path, name, "parquet", compression, group, first_line=1 + sum(rows[:group])) for group in range(len(rows))
    ]


def line_ranges(path: str, range_bytes: int) -> list[tuple[int, int, int]]:
    """Pieces of a file cut at line ends: first byte, end byte (−1: end of file), number of the first line.

    A file that is no JSON Lines, or not in UTF-8, is one piece.
    """
    ranges, begin, first_line = [], 0, 1
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            if size > 2 * range_bytes and (as_utf8(stream) is not stream or not is_json_lines(stream)):
                return [(0, -1, 1)]
            stream.seek(0)
            while size - begin > 2 * range_bytes:  # else the rest is one piece
                lines, end = 0, begin
                while end - begin < range_bytes and (
                    block := stream.read(min(_BLOCK_BYTES, range_bytes - (end - begin)))
                ):
                    lines, end = lines + block.count(b"\n"), end + len(block)
                while line := stream.readline(_BLOCK_BYTES):
                    end += len(line)
                    if line.endswith(b"\n"):
                        lines += 1
                        break
                if end >= size:
                    break
                ranges.append((begin, end, first_line))
                begin, first_line = end, first_line + lines
    except OSError:
        return [(0, -1, 1)]  # the reader reports the error as a dead letter
    return [*ranges, (begin, -1, first_line)]


def _streams_of(path: str, name: str, compression: str) -> list[Unit]:
    """One unit per stream of a dump, including streams missing in its index; without an index one for the file."""
    whole = [Unit(path, name, "mediawiki", compression)]
    index = mediawiki.index_path(path)
    if not index or not exists(index):
        return whole
    try:
        with (
            open_file(index) as raw,
            decompressed(raw, "bz2") as lines,
        ):
            listed = list(mediawiki.streams(lines))
        if "://" in path:
            _LOG.info("%s: read once, to find streams that its index lacks", name)
        with open_file(path) as raw:
            prefixes = tuple(mediawiki.unread_prefixes(raw))
            found = mediawiki.with_unlisted(listed, raw) if listed else []
    except (*DAMAGE, ValueError) as error:
        raise InputError(
            f"{index}: cannot be read ({error}); copy it and the dump again, "
            "or move it away to read the dump as one piece"
        ) from error
    if len(found) > len(listed) > 0:
        known = {stream.start for stream in listed}
        lacking = [stream.num_pages for stream in found if stream.start not in known]
        _LOG.warning(
            "%s: its index lacks %d streams with %d pages, which are read all the same",
            name,
            len(lacking),
            sum(lacking),
        )
    return [Unit(path, name, "mediawiki", "bz2", 0, s.first_page, s, prefixes) for s in found] or whole


def describe(units: Sequence[Unit]) -> list[dict[str, Any]]:
    """The input for a recipe: name and sha256 of local files; size and time of change of remote files."""
    described = []
    for path, name in sorted({(unit.path, unit.name) for unit in units}):
        if "://" in path:
            size, changed = size_and_change(path)
            described.append({"path": name, "bytes": size, "changed": changed})
        else:
            described.append({"path": name, "bytes": os.path.getsize(path), "sha256": sha256_file(path)})
    return described
