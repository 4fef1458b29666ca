"""Live rows by shard and rows by document, against their definitions, over any overlays and tombstones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from clara.memory.document_rows import DocumentRows
from clara.memory.live_rows import LiveRows

SHARDS = st.lists(st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted), max_size=9)
DOCUMENTS = ["", "a", "aa", "b", "a\x00", "ä", "日本", "\U0001f600", "\uffff"]


def live_rows(shards: list[list[int]], tombstones: list[int]) -> LiveRows:
    return LiveRows([np.array(rows, np.int64) for rows in shards], tombstones, "here")


@given(shards=SHARDS, tombstones=st.lists(st.integers(0, 40), max_size=6))
def test_rows_of_every_shard(shards: list[list[int]], tombstones: list[int]) -> None:
    live = live_rows(shards, tombstones)
    expected = [live.row_ids[live.shard_of == shard].tolist() for shard in range(len(shards))]
    assert [rows.tolist() for rows in live.by_every_shard()] == expected
    assert live.rows_of_shards.tolist() == [len(rows) for rows in expected]
    newest = {row: shard for shard, rows in enumerate(shards) for row in rows if row not in tombstones}
    assert {row: shard for shard, rows in enumerate(expected) for row in rows} == newest


@given(shards=SHARDS, data=st.data())
def test_a_request_is_cut_by_shard(shards: list[list[int]], data: st.DataObject) -> None:
    live = live_rows(shards, [])
    asked = data.draw(st.lists(st.sampled_from(live.row_ids.tolist()), max_size=30)) if len(live.row_ids) else []
    index = live.positions(asked)
    expected = [
        (shard, where.tolist(), live.position_of[index[where]].tolist())
        for shard in range(len(shards))
        if len(where := np.flatnonzero(live.shard_of[index] == shard))
    ]
    assert [(shard, where.tolist(), places.tolist()) for shard, where, places in live.by_shard(asked)] == expected
    assert all(
        shards[shard][place] == asked[at]
        for shard, where, places in expected
        for at, place in zip(where, places, strict=True)
    )


def test_documents_of_rows_and_rows_of_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(30):
        shards = [np.sort(rng.choice(200, int(rng.integers(0, 40)), replace=False)) for _ in range(number % 5)]
        documents = [[DOCUMENTS[i] for i in rng.integers(0, len(DOCUMENTS) - 1, len(rows))] for rows in shards]
        paths = [tmp_path / f"{number}-{shard}.parquet" for shard in range(len(shards))]
        for path, column in zip(paths, documents, strict=True):
            pq.write_table(pa.table({"document_id": pa.array(column, pa.string())}), path)
        live = live_rows([rows.tolist() for rows in shards], rng.integers(0, 200, 9).tolist())
        found = DocumentRows(paths, live)
        newest = {
            row: name
            for rows, column in zip(shards, documents, strict=True)
            for row, name in zip(rows.tolist(), column, strict=True)
        }
        assert found.of_rows() == [newest[row] for row in live.row_ids.tolist()]
        for document in [*DOCUMENTS, "nobody", "\ud800"]:
            assert found.rows_of(document) == [row for row in live.row_ids.tolist() if newest[row] == document]
