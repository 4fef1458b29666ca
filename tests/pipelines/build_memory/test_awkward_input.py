"""The corpus command on files as people have them: what its MEMORY holds, and what it reports."""

import functools
import json
import logging

import pytest

from clara.errors import InputError
from clara.memory.fingerprint import EncodingSettings, check, of_model
from clara.memory.store import MemoryStore
from clara.model.model import ClaraModel
from clara.storage.manifest import read_manifest
from tests.helpers.awkward import JSON, PARQUET, long_window, table
from tests.helpers.memory_command import Build, dead_letters, jsonl


def test_files_of_all_shapes_are_one_corpus(build: Build) -> None:
    files = {
        "export.json": JSON["lines"].encode(),
        "wrapped.json": JSON["wrapped"].replace("410", "510").encode(),
        "floats.parquet": PARQUET["floats"],
        "long.jsonl.zst": long_window(JSON["windows"].replace("410", "610").encode()),
        "a.csv": table(",").replace("410", "710").encode(),
        "pages.jsonl": jsonl({"id": "8", "text": "end here.\fThe fees"}),
        "_SUCCESS": b"",
    }
    memory = build(files, "--max-failures=0")
    store = MemoryStore.open(memory, verify=True)
    counts = read_manifest(memory)["counts"]
    assert counts["documents"] == counts["records read"] == 11
    # Equal texts are one row, under the first document in the corpus.
    assert sorted(store.document_ids) == ["7101", "7102", "8"]
    assert "end here. The fees" in {record.text for record in store.records(store.row_ids)}


@pytest.mark.parametrize("runner", ["local", pytest.param("BundleBasedDirectRunner", marks=pytest.mark.slow)])
def test_what_is_not_read_is_reported(
    build: Build, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], runner: str
) -> None:
    files = {
        "a.jsonl": jsonl({"docid": "1", "title": "T", "text": "One."}, {"docid": "2", "text": "Two.", "url": "u"}),
        "b.jsonl": jsonl({"id": "3", "text": "Three.", "url": "v"}, {"text": "Four."}, {"id": "5", "text": ""}),
    }
    with caplog.at_level(logging.WARNING):
        memory = build(files, f"--runner={runner}")
    counts = read_manifest(memory)["counts"]
    assert counts["fields not read"] == {"docid": 2, "url": 2}
    assert counts["rows without an id"] == 3
    assert [(d["document_id"], d["reason"]) for d in dead_letters(memory)] == [("5", "empty text")]
    assert "fields not read  {'docid': 2, 'url': 2}" in capsys.readouterr().out
    assert "a.jsonl: no row has `id`; it has `docid`, `title`, `text`, `url`" in caplog.text
    assert "is it --id-field docid?" in caplog.text
    assert "b.jsonl: 1 rows have no `id`" in caplog.text


def test_a_memory_of_the_older_normalisation_is_read_but_not_updated(
    build: Build, monkeypatch: pytest.MonkeyPatch, tiny_model: ClaraModel
) -> None:
    files = {"a.jsonl": jsonl({"id": "1", "text": "One."})}
    with monkeypatch.context() as patch:
        older = functools.partial(EncodingSettings, normalisation=1)
        patch.setattr("pipelines.build_memory.job.EncodingSettings", older)
        memory = build(files, output="older")
    manifest = json.loads((memory / "manifest.json").read_text())
    assert "normalisation" not in manifest["fingerprint_fields"]  # as before there were versions
    store = MemoryStore.open(memory, verify=True)
    check([of_model(tiny_model, store.fingerprint_fields.encoding)], store.fingerprint_fields)
    newer = build(files, output="newer")
    assert read_manifest(newer)["fingerprint_fields"]["normalisation"] == 2
    assert MemoryStore.open(newer).row_ids.tolist() == store.row_ids.tolist()
    with pytest.raises(
        InputError, match=r"--update .*older: .*version 1, this program has version 2.*without --update"
    ):
        build(files, f"--update={memory}", output="updated")
    build(files, f"--update={newer}", output="updated")
