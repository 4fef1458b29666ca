"""MEMORY of mixed versions: re-encoded rows in overlays, the version of each row, who may read it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clara.config.model import Backbone
from clara.data.records import Chunk, chunk_id, row_id
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.search import MemoryIndex
from clara.memory.compact import compact
from clara.memory.compress import Encoding, write_memory_shard
from clara.memory.fingerprint import EncodingSettings, Fingerprint, of_checkpoint
from clara.memory.mean import MEAN, MOVED
from clara.memory.mixed_versions import FIELD
from clara.memory.reencode import reencode
from clara.memory.reencode_rows import reencode_rows
from clara.memory.shards import shard_name
from clara.memory.store import MemoryStore, complete_memory
from clara.memory.update import open_shard
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.model import ClaraModel
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import manifest_hash, read_manifest
from tests.helpers import tiny
from tests.helpers.artefacts import verify

NUM_SHARDS = 3
SETTINGS = EncodingSettings(96, 0, key_size=32, key_seed=0, dtype="float32")


def moved(checkpoint: Path, folder: Path, seed: int) -> tuple[ClaraModel, Fingerprint, Path]:
    """Another compressor on the same backbone, saved."""
    model = load_checkpoint(checkpoint, Backbone(dtype="float32"))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.role_parameters("compressor"):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    save_checkpoint(model, folder, stage="joint", recipe={"seed": seed}, store_backbone=False)
    return model, of_checkpoint(folder, SETTINGS), folder


def write(model: ClaraModel, fingerprint: Fingerprint, folder: Path, codec: str = "float16") -> MemoryStore:
    chunks = []
    for row in tiny.documents():
        name = chunk_id(row["title"], row["text"])
        chunks.append(
            Chunk(
                row_id(name), name, row["id"], row["title"], row["text"], 0, len(row["text"]), 0, False, "corpus.jsonl"
            )
        )
    reports = [
        write_memory_shard(
            lambda: model,
            [c for c in chunks if c.row_id % NUM_SHARDS == shard],
            folder,
            shard_name(shard, NUM_SHARDS),
            Encoding(fingerprint, codec, 1024),
        )
        for shard in range(NUM_SHARDS)
    ]
    complete_memory(
        folder,
        reports,
        fingerprint=fingerprint,
        codec=codec,
        num_shards=NUM_SHARDS,
        recipe={"made_by": "tests"},
        counts={},
    )
    return MemoryStore.open(folder)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """`v0`: base; `v1`: eleven rows re-encoded by a second compressor; `v2`: seven by a third, four of them again."""
    folder = tmp_path_factory.mktemp("mixed")
    first = load_checkpoint(tiny_checkpoint, Backbone(dtype="float32"))
    base = write(first, of_checkpoint(tiny_checkpoint, SETTINGS), folder / "v0")
    model, fingerprint, _ = moved(tiny_checkpoint, folder / "c1", 1)
    reencode_rows(base, base.row_ids[:11][::-1], model, folder / "v1", fingerprint=fingerprint, batch_tokens=1024)
    model, fingerprint, _ = moved(tiny_checkpoint, folder / "c2", 2)
    one = MemoryStore.open(folder / "v1", mixed=True)
    reencode_rows(one, one.row_ids[7:14], model, folder / "v2", fingerprint=fingerprint, batch_tokens=1024)
    return folder


def compressors(places: Path, checkpoint: Path) -> list[tuple[ClaraModel, Fingerprint]]:
    folders = [checkpoint, places / "c1", places / "c2"]
    return [(load_checkpoint(f, Backbone(dtype="float32")), of_checkpoint(f, SETTINGS)) for f in folders]


# Which compressor made each of the forty rows, in order of their ids.
MADE_BY = [1] * 7 + [2] * 7 + [0] * 26


def test_each_row_is_what_its_own_version_makes_of_it(places: Path, tiny_checkpoint: Path) -> None:
    made = compressors(places, tiny_checkpoint)
    store = MemoryStore.open(places / "v2", accept=[fingerprint for _, fingerprint in made], verify=True)
    assert len(store) == 40
    shards = store.shards_of(store.row_ids)
    assert [store.shard_fingerprints[shard] for shard in shards] == [made[number][1] for number in MADE_BY]
    for chunk, number, stored in zip(store.records(store.row_ids), MADE_BY, store.memory(store.row_ids), strict=True):
        model, _ = made[number]
        fresh = model.compress([model.document_ids(f"{chunk.title}\n{chunk.text}")])[0].numpy()
        np.testing.assert_allclose(stored, fresh, atol=4e-3, rtol=2e-3)


def test_only_the_overlay_is_written_and_the_rest_linked(places: Path) -> None:
    before, after = read_manifest(places / "v0"), read_manifest(places / "v1")
    assert after["shards"] == before["shards"]
    assert all(name.startswith("overlay-00001-shard-") for name in after["overlays"])
    overlay = {f["path"] for f in after["files"]} - {f["path"] for f in before["files"]}
    assert {path.partition("/")[0] for path in overlay} == {*after["overlays"]}
    assert sum(f.get("rows", 0) for f in after["files"] if f["path"] in overlay) == 2 * 11
    for path in (f["path"] for f in before["files"] if f["path"] != MEAN):
        assert (places / "v1" / path).samefile(places / "v0" / path)
    assert after["parent"] == manifest_hash(places / "v0")
    for version in ("v0", "v1", "v2"):  # the mean follows the rows that were encoded again
        store = MemoryStore.open(places / version, mixed=True)
        np.testing.assert_allclose(store.mean, store.memory(store.row_ids).mean(axis=0), atol=1e-6)
        assert store.manifest[MOVED] == {"cosine": 1.0, "distance": 0.0}
    # Named are the shards that are older than the version: what has no live row any more is gone.
    assert {*read_manifest(places / "v2")[FIELD]} <= {*after["shards"], *after["overlays"]}


def test_the_keys_of_an_index_are_of_each_rows_own_version(places: Path, tmp_path: Path) -> None:
    store = MemoryStore.open(places / "v2", mixed=True)
    with pytest.raises(InputError, match="mixed MEMORY"):
        build_index(places / "v2", tmp_path / "i")
    build_index(places / "v2", tmp_path / "i", "Flat", mixed=True)
    found, scores = MemoryIndex.open(tmp_path / "i", store).search(store.memory(store.row_ids), 1, first_level=20)
    assert found[:, 0].tolist() == store.row_ids.tolist()
    assert scores.min() > 0.999


def test_whoever_does_not_accept_every_version_is_refused_with_the_reason(
    places: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    fingerprints = [fingerprint for _, fingerprint in compressors(places, tiny_checkpoint)]
    refused = pytest.raises(InputError, match=r"mixed MEMORY, whose rows 3 versions.*joint\.refresh\.final = true")
    for accept in (None, fingerprints[:2], [fingerprints[2]]):
        with refused:
            MemoryStore.open(places / "v2", accept=accept)
    with refused:
        Retriever.open(places / "c2", places / "v2")
    with refused:
        open_shard(places / "v2", 0)
    MemoryStore.open(places / "v2", accept=[f.hash for f in fingerprints])
    with pytest.raises(InputError, match=r"\(not accepted\)"):
        MemoryStore.open(places / "v2", accept=[fingerprints[0].hash])
    stale = Retriever.open(places / "c2", places / "v2", accept_stale=True)
    assert len(stale.store) == 40
    with pytest.raises(InputError, match="mixed MEMORY"):
        compact(MemoryStore.open(places / "v2"), tmp_path / "compacted")


def test_rows_that_have_all_been_chosen_are_a_memory_of_one_compressor(
    places: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The same numbers as a full re-encoding in the same batches, and no trace of the older versions."""
    model, fingerprint = compressors(places, tiny_checkpoint)[2]
    parent = MemoryStore.open(places / "v2", mixed=True)
    manifest = reencode_rows(
        parent, parent.row_ids, model, tmp_path / "all", fingerprint=fingerprint, batch_tokens=1024
    )
    assert FIELD not in manifest
    assert manifest["shards"] == []
    store = MemoryStore.open(tmp_path / "all", accept=[fingerprint])
    reencode(parent, model, tmp_path / "full", fingerprint=fingerprint, batch_tokens=1024)
    full = MemoryStore.open(tmp_path / "full", accept=[fingerprint])
    assert np.array_equal(store.memory(store.row_ids), full.memory(full.row_ids))
    assert np.array_equal(store.keys(), full.keys())
    rows = [dataclasses.astuple(chunk) for chunk in store.records(store.row_ids)]
    assert rows == [dataclasses.astuple(chunk) for chunk in full.records(full.row_ids)]


def test_an_interrupted_one_goes_on_and_a_finished_one_is_kept(
    places: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    class Counting:
        """The compressor, and how many rows it was given."""

        def __init__(self, model: ClaraModel) -> None:
            self.model, self.rows = model, 0
            self.num_memory_tokens, self.hidden_size, self.document_ids = (
                model.num_memory_tokens,
                model.hidden_size,
                model.document_ids,
            )

        def compress(self, texts: list[list[int]]) -> torch.Tensor:
            self.rows += len(texts)
            if self.rows > 11:
                raise KeyboardInterrupt
            return self.model.compress(texts)

    model, fingerprint = compressors(places, tiny_checkpoint)[1]
    store = MemoryStore.open(places / "v0")
    rows, counting = store.row_ids[::2], Counting(model)
    with pytest.raises(KeyboardInterrupt):
        reencode_rows(store, rows, counting, tmp_path, fingerprint=fingerprint, batch_tokens=200)
    assert not (tmp_path / "manifest.json").exists()
    done = sum(json.loads(p.read_text())["report"]["rows"] for p in tmp_path.glob("*/plan.json"))
    assert done
    counting.rows = done - 20 + 11
    manifest = reencode_rows(store, rows, counting, tmp_path, fingerprint=fingerprint, batch_tokens=200)
    assert counting.rows == 11
    assert manifest == reencode_rows(store, rows, counting, tmp_path, fingerprint=fingerprint, batch_tokens=200)
    verify(tmp_path)


def test_what_cannot_be_encoded_again_is_refused(places: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    model, fingerprint = compressors(places, tiny_checkpoint)[1]
    store = MemoryStore.open(places / "v0")
    with pytest.raises(InputError, match="choose at least one"):
        reencode_rows(store, [], model, tmp_path, fingerprint=fingerprint, batch_tokens=1024)
    with pytest.raises(InputError, match="not a live row"):
        reencode_rows(store, [1], model, tmp_path, fingerprint=fingerprint, batch_tokens=1024)
    with pytest.raises(InputError, match="cannot be re-encoded with other settings"):
        reencode_rows(
            store,
            store.row_ids[:1],
            model,
            tmp_path,
            fingerprint=dataclasses.replace(fingerprint, max_tokens=5),
            batch_tokens=1024,
        )
    assert not any(tmp_path.iterdir())
