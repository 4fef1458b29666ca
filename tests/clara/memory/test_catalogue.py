"""The catalogue of a MEMORY lists its live documents, by id, and finds parts of ids and titles."""

import json
import string
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from clara.memory.catalogue import Catalogue, Listed
from clara.memory.store import MemoryStore
from tests.helpers.evaluation_world import World
from tests.helpers.fuzz import examples
from tests.helpers.memories import chunk, random_memory, write_memory


def test_every_document_is_listed_once_by_id(evaluation_artefacts: World, corpus_file: Path) -> None:
    catalogue = Catalogue(MemoryStore.open(evaluation_artefacts.memory))
    rows = [json.loads(line) for line in corpus_file.read_text(encoding="utf-8").splitlines()]
    assert len(catalogue) == len(rows) == 40
    assert catalogue.find("", 0, 100) == (40, [Listed(row["id"], row["title"], 2) for row in rows])
    assert catalogue.find("", 38, 100)[1] == [Listed(row["id"], row["title"], 2) for row in rows[38:]]
    assert catalogue.find("", 40, 5) == (40, [])

    @settings(max_examples=examples(40), deadline=None)
    @given(text=st.text(string.printable, max_size=3) | st.sampled_from(["doc-0", "ON THE", "jor", "%", ".*", "Ünd"]))
    def check(text: str) -> None:
        found = {row["id"] for row in rows if text.lower() in row["id"] or text.lower() in row["title"].lower()}
        total, listed = catalogue.find(text, 0, 100)
        assert (total, {document.document_id for document in listed}) == (len(found), found)

    check()


def test_rows_that_were_removed_are_not_listed(tmp_path: Path) -> None:
    gone = [chunk(number).row_id for number in (1, 3)]
    store = MemoryStore.open(write_memory(tmp_path / "memory", random_memory(6), tombstones=gone))
    total, listed = Catalogue(store).find("", 0, 10)
    assert (total, [document.document_id for document in listed]) == (4, [f"document-{n}" for n in (0, 2, 4, 5)])
    everything = [chunk(number).row_id for number in range(6)]
    empty = MemoryStore.open(write_memory(tmp_path / "empty", random_memory(6), tombstones=everything))
    assert Catalogue(empty).find("", 0, 10) == (0, [])
