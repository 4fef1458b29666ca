"""Records spilled by partition: each is read back from its partition, and nothing else is."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.errors import InputError
from pipelines.corpus.spill import (
    NUM_PARTITIONS,
    SpillWriter,
    begin_spill,
    files_of,
    partition_of,
    partitions_of_shard,
    read_lines,
    read_partitions,
    to_line,
)
from pipelines.corpus.splits import line_ranges
from tests.helpers.fuzz import examples


@given(st.lists(st.integers(0, 2**63 - 1), max_size=40), st.integers(0, 14), st.integers(1, 60))
@settings(max_examples=examples(30), deadline=None)
def test_the_rows_of_any_power_of_two_of_shards_are_found_in_one_range(
    numbers: list[int], power: int, file_bytes: int
) -> None:
    num_shards = 2**power
    with TemporaryDirectory() as folder:
        writer = SpillWriter(Path(folder) / "unit-000000", "chunks", NUM_PARTITIONS, file_bytes)
        for number in numbers:
            writer.add(partition_of(number, 0), to_line(number))
        writer.flush()
        files = files_of(folder, "chunks")
        assert len(files) == writer.num_files
        for shard in {number % num_shards for number in numbers} | {0}:
            found = [number for _, number in read_lines(files, *partitions_of_shard(shard, num_shards))]
            own = [number for number in numbers if number % num_shards == shard]
            assert sorted(number for number in found if number % num_shards == shard) == sorted(own)
            if num_shards <= NUM_PARTITIONS:
                assert sorted(found) == sorted(own)


def test_a_given_number_of_shards_has_a_partition_each() -> None:
    assert [partition_of(number, 7) for number in (0, 6, 7, 20)] == [0, 6, 0, 6]
    with pytest.raises(ValueError, match="6 shards: not a power of two"):
        partitions_of_shard(1, 6)


def test_a_truncated_spill_file_is_reported(tmp_path: Path) -> None:
    writer = SpillWriter(tmp_path / "unit-000000", "chunks", 4)
    writer.add(3, b"x" * 100)
    writer.flush()
    (file,) = files_of(str(tmp_path), "chunks")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="shorter than it was"):
        list(read_partitions([file], 3, 4))


def test_what_an_attempt_left_is_gone_when_the_next_begins(tmp_path: Path) -> None:
    for sizes in ((30, 30, 30), (5,)):
        writer = SpillWriter(tmp_path / "unit-000000", "chunks", 4, 20)
        for size in sizes:
            writer.add(0, b"x" * size)
        writer.flush()
    assert [file.name for file in files_of(str(tmp_path), "chunks")] == ["unit-000000-00000.chunks"]


def test_a_folder_is_kept_for_its_recipe_only(tmp_path: Path) -> None:
    spill = str(tmp_path / "spill")
    begin_spill(spill, {"a": 1})
    (tmp_path / "spill" / "unit-000000.json").write_text("{}")
    begin_spill(spill, {"a": 1})
    assert (tmp_path / "spill" / "unit-000000.json").exists()
    begin_spill(spill, {"a": 2})
    assert not (tmp_path / "spill" / "unit-000000.json").exists()


@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=30),
    st.booleans(),
    st.integers(1, 50),
)
@settings(max_examples=examples(60), deadline=None)
def test_pieces_of_a_file_are_its_lines_each_once_with_their_numbers(
    lines: list[bytes], ended: bool, range_bytes: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(data)
        ranges = line_ranges(str(path), range_bytes)
    assert (ranges[0][0], ranges[-1][1]) == (0, -1)
    pieces = [data[start : end if end >= 0 else None] for start, end, _ in ranges]
    assert b"".join(pieces) == data
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert [line for _, _, line in ranges] == [1 + data[:start].count(b"\n") for start, _, _ in ranges]
    assert all(range_bytes <= len(piece) for piece in pieces[:-1])
