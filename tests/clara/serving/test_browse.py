"""What is served can be looked into: MEMORY, its documents and dead letters, and what made each artefact."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

import clara
from clara.storage.manifest import MANIFEST, manifest_hash, read_manifest, write_file
from clara.system import System
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import client_of

COUNTS = {"documents": 40, "dead letters": 5, "dead letters by reason": {"not JSON": 4, "no text": 1}}


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[TestClient]:
    with client_of(system, max_running=3) as found:
        yield found


@pytest.fixture(scope="module")
def with_letters(evaluation_artefacts: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service whose MEMORY has five dead letters in two files, and counts."""
    folder = tmp_path_factory.mktemp("letters") / "memory"
    shutil.copytree(evaluation_artefacts.memory, folder)
    manifest = read_manifest(folder)
    for part, numbers in enumerate(((1, 2, 3), (4, 5))):
        letter = {"source": "corpus.jsonl", "reason": "not JSON", "detail": "Expecting value", "snippet": "{"}
        text = "".join(json.dumps({**letter, "line": number}) + "\n" for number in numbers)
        name = f"dead_letters-{part:05d}-of-00002.jsonl"
        manifest["files"].append(write_file(folder, name, text.encode(), len(numbers)))
    (folder / MANIFEST).write_text(json.dumps(manifest | {"counts": COUNTS}), encoding="utf-8")
    with client_of(clara.open(evaluation_artefacts.checkpoint, folder)) as found:
        yield found


def got(client: TestClient, path: str, **fields: Any) -> Any:
    reply = client.get(path, params=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_memory_as_its_manifest_has_it(client: TestClient, with_letters: TestClient, system: System) -> None:
    store, found = system.retriever.store, got(client, "/v1/memory")
    assert (found["rows"], found["hash"], found["codec"]) == (len(store), store.hash, "float16")
    assert (found["num_overlays"], found["num_tombstones"], found["num_dead_letters"]) == (0, 0, 0)
    assert found["fingerprints"] == {store.fingerprint: 2}
    found = got(with_letters, "/v1/memory")
    assert (found["counts"], found["num_dead_letters"]) == (COUNTS, 5)


def test_documents_are_paged_and_found(client: TestClient) -> None:
    pages = [got(client, "/v1/memory/documents", offset=offset, limit=15) for offset in (0, 15, 30, 45)]
    assert [page["total"] for page in pages] == [40] * 4
    names = [document["document_id"] for page in pages for document in page["documents"]]
    assert names == [f"doc-{number:02d}" for number in range(40)]
    found = got(client, "/v1/memory/documents", search="jorvik on the w")
    assert found == {
        "total": 1,
        "documents": [{"document_id": "doc-39", "title": "Jorvik on the Wend", "num_chunks": 2}],
    }


def test_chunks_of_a_document(client: TestClient, system: System) -> None:
    found = got(client, "/v1/memory/chunks", document="doc-39")
    assert (found["total"], found["chunks"][0]["start"]) == (2, 0)
    own = {str(row) for row in system.retriever.store.rows_of("doc-39")}
    assert {chunk["row_id"] for chunk in found["chunks"]} == own
    assert found["chunks"][0]["text"].startswith("Jorvik on the Wend is a town of")
    assert got(client, "/v1/memory/chunks", document="doc-39", offset=1)["chunks"] == found["chunks"][1:]


def test_dead_letters_are_paged_over_files(client: TestClient, with_letters: TestClient) -> None:
    assert got(client, "/v1/memory/dead-letters") == {"total": 0, "dead_letters": []}
    for offset in range(6):
        for limit in (1, 2, 100):
            found = got(with_letters, "/v1/memory/dead-letters", offset=offset, limit=limit)
            lines = [letter["line"] for letter in found["dead_letters"]]
            assert (found["total"], lines) == (5, [1, 2, 3, 4, 5][offset : offset + limit])
    assert found == {"total": 5, "dead_letters": []}


def test_lineage_as_the_manifests_have_it(
    client: TestClient, with_letters: TestClient, evaluation_artefacts: World
) -> None:
    world, found = evaluation_artefacts, got(client, "/v1/lineage")["artefacts"]
    assert [(own["kind"], own["hash"]) for own in found] == [
        ("CHECKPOINT", manifest_hash(world.checkpoint)),
        ("MEMORY", manifest_hash(world.memory)),
        ("INDEX", manifest_hash(world.index)),
    ]
    checkpoint, memory, index = found
    assert (checkpoint["recipe"], checkpoint["fields"]["stage"]) == ({"made_by": "tests"}, "pretrain")
    assert index["recipe"]["memory"] == memory["hash"]
    assert "torch" in memory["versions"]
    assert [own["kind"] for own in got(with_letters, "/v1/lineage")["artefacts"]] == ["CHECKPOINT", "MEMORY"]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("documents", {"limit": 0}, "limit: Input should be greater"),
    ("documents", {"limit": 101}, "limit: Input should be less"),
    ("documents", {"offset": -1}, "offset: Input should be greater"),
    ("documents", {"offset": 10**30}, "offset: "),
    ("documents", {"search": "a" * 201}, "search: String should have at most 200"),
    ("documents", {"searched": "Arlen"}, "searched: Extra inputs are not permitted"),
    ("chunks", {}, "document: Field required"),
    ("chunks", {"document": "doc-99"}, "no row of 'doc-99'"),
    ("dead-letters", {"limit": "many"}, "limit: Input should be a valid integer"),
]


@pytest.mark.parametrize(("path", "fields", "message"), BAD)
def test_bad_input_is_refused(client: TestClient, path: str, fields: dict[str, Any], message: str) -> None:
    reply = client.get(f"/v1/memory/{path}", params=fields)
    assert reply.status_code == 422
    assert message in reply.json()["error"]["message"]


def test_a_key_is_asked_for(system: System) -> None:
    with client_of(system, key="secret") as client:
        for path in ("memory", "memory/documents", "memory/chunks?document=doc-01", "memory/dead-letters", "lineage"):
            assert client.get(f"/v1/{path}").status_code == 401
