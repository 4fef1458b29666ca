"""Exact search over all rows: the same as sorting all scores at once, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clara.arrays import NO_ROW
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.model.geometry import represent
from clara.retrieval import memory_ranker
from clara.retrieval.memory_ranker import ExactSearch
from tests.helpers.memories import random_memory, write_memory

BLOCK = 8


@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_blocks_give_what_sorting_all_scores_gives(k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_ranker, "_EXACT_BLOCK_ROWS", BLOCK)
    store = MemoryStore.open(write_memory(tmp_path / "memory", random_memory(50)))
    rows, memory = store.row_ids, torch.from_numpy(store.memory(store.row_ids))
    # Rows 3, 11 and 12 are equal, within and beyond a block; so are their scores, and the lower row id comes first.
    memory[[11, 12]] = memory[3].clone()
    places = {row: place for place, row in enumerate(rows.tolist())}
    monkeypatch.setattr(store, "memory", lambda own: memory[[places[row] for row in np.asarray(own).tolist()]].numpy())
    query = torch.stack([memory[3], memory[20], torch.full_like(memory[0], torch.nan)])
    excluded = [[int(rows[20])], [int(rows[20]), int(rows[40]), 12345], []]

    blocks = [represent(query.float(), PUBLISHED) @ represent(own, PUBLISHED, None).T for own in memory.split(BLOCK)]
    scores = torch.cat(blocks, dim=1).numpy()
    scores[~np.isfinite(scores)] = -np.inf
    for own, out in zip(scores, excluded, strict=True):
        own[np.isin(rows, out)] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)

    found, found_scores = ExactSearch(store).search(query, k, first_level=k, exclude=excluded)
    assert found.shape == found_scores.shape == (3, k)
    width = best.shape[1]
    assert np.array_equal(found[:, :width], np.where(np.isneginf(best), NO_ROW, rows[order]))
    assert np.array_equal(found_scores[:, :width], best)
    assert (found[:, width:] == NO_ROW).all()
    assert (found[2] == NO_ROW).all()
    assert found[0, :3].tolist() == rows[[3, 11, 12]].tolist()[:k]
