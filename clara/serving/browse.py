"""Routes that show what is served: MEMORY with its documents and dead letters, and what made each artefact."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from clara.errors import InputError
from clara.memory.catalogue import Catalogue
from clara.memory.store import MemoryStore
from clara.serving.errors import DOCUMENTED
from clara.serving.service import Service
from clara.storage.artefact import Artefact

DEAD_LETTERS = "dead_letters"


class Paged(BaseModel):
    """The page of a list that is requested; part of the query, whose values are texts."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0, lt=2**31, description="how many are passed over")
    limit: int = Field(20, ge=1, le=100, description="how many are returned at most")


class DocumentsQuery(Paged):
    """The documents that are requested."""

    search: str = Field("", max_length=200, description="part of an id or title")


class ChunksQuery(Paged):
    """Which document's chunks."""

    document: str = Field(max_length=2000, description="its id")


class ArtefactReply(BaseModel):
    """An artefact that is served, as its manifest describes it."""

    kind: str
    name: str = Field(description="path or URL that it was opened by")
    hash: str = Field(description="of its manifest; other artefacts name it by this hash")
    parent: str = Field(description="hash of the version that it follows, if any")
    created: str
    counts: dict[str, Any]
    recipe: dict[str, Any] = Field(description="settings and inputs that made it; inputs are paths or hashes")
    versions: dict[str, str] = Field(description="of Python and packages that made it")
    fields: dict[str, Any] = Field(description="what only this kind has")


class LineageReply(BaseModel):
    """CHECKPOINT, MEMORY and INDEX, as far as they are known."""

    artefacts: list[ArtefactReply]


class MemoryReply(BaseModel):
    """The MEMORY that is searched."""

    name: str
    hash: str
    created: str
    rows: int = Field(description="live rows: chunks that can be found")
    codec: str
    num_shards: int
    num_overlays: int = Field(description="shards that updates and refreshes added")
    num_tombstones: int = Field(description="rows that updates removed")
    fingerprints: dict[str, int] = Field(description="shards by the fingerprint of their vectors; several: versions")
    counts: dict[str, Any] = Field(description="of the job that made it, by reason where it has reasons")
    num_dead_letters: int


class DocumentReply(BaseModel):
    """A document of MEMORY, without its chunks."""

    document_id: str
    title: str
    num_chunks: int


class DocumentsReply(BaseModel):
    """Documents by id; `total` of all that fit."""

    total: int
    documents: list[DocumentReply]


class ChunkReply(BaseModel):
    """A chunk; a copy that was not kept is shown as the equal chunk of another document."""

    row_id: str
    document_id: str
    title: str
    text: str
    start: int
    end: int
    num_tokens: int
    truncated: bool
    source: str


class ChunksReply(BaseModel):
    """Chunks of a document, in its order."""

    total: int
    chunks: list[ChunkReply]


class DeadLetterReply(BaseModel):
    """A record that the corpus job did not use, and why."""

    source: str
    line: int
    reason: str
    detail: str
    snippet: str = ""
    dropped: bool = Field(False, description="on purpose; else it failed")
    document_id: str = ""
    kept: str = Field("", description="what is kept in place of a duplicate")


class DeadLettersReply(BaseModel):
    """Dead letters by input file and line."""

    total: int
    dead_letters: list[DeadLetterReply]


def add_browse(app: APIRouter, service: Service) -> None:
    """Add the routes. They read beside the engine; the catalogue is made when documents are first looked at."""
    catalogues: WeakKeyDictionary[MemoryStore, Catalogue] = WeakKeyDictionary()
    making = threading.Lock()

    def memory_store() -> MemoryStore:
        return service.engine.system.retriever.store

    def catalogue() -> Catalogue:
        store = memory_store()
        with making:
            if store not in catalogues:
                catalogues[store] = Catalogue(store)
            return catalogues[store]

    @app.get("/v1/memory", responses=DOCUMENTED)
    def memory() -> MemoryReply:
        """The MEMORY that is searched: rows, versions, and the counts of the job that made it."""
        return _memory_reply(memory_store())

    @app.get("/v1/memory/documents", responses=DOCUMENTED)
    def documents(asked: Annotated[DocumentsQuery, Query()]) -> DocumentsReply:
        """Documents of MEMORY by id, those whose id or title holds a text."""
        total, found = catalogue().find(asked.search, asked.offset, asked.limit)
        return DocumentsReply(total=total, documents=[DocumentReply(**vars(document)) for document in found])

    @app.get("/v1/memory/chunks", responses=DOCUMENTED)
    def chunks(asked: Annotated[ChunksQuery, Query()]) -> ChunksReply:
        """Chunks of a document."""
        return _chunks_reply(memory_store(), asked)

    @app.get("/v1/memory/dead-letters", responses=DOCUMENTED)
    def dead_letters(asked: Annotated[Paged, Query()]) -> DeadLettersReply:
        """Records of the corpus that are not in MEMORY, with the reason."""
        artefact = memory_store().artefact
        letters = list(itertools.islice(_dead_letters(artefact, asked.offset), asked.limit))
        return DeadLettersReply(total=_num_dead_letters(artefact), dead_letters=letters)

    @app.get("/v1/lineage", responses=DOCUMENTED)
    def lineage() -> LineageReply:
        """What made CHECKPOINT, MEMORY and INDEX: inputs, settings, counts, package versions."""
        retriever = service.engine.system.retriever
        index = None if retriever.index is None else retriever.index.artefact
        opened = [retriever.checkpoint, retriever.store.artefact, index]
        return LineageReply(artefacts=[_artefact_reply(artefact) for artefact in opened if artefact is not None])


def _memory_reply(store: MemoryStore) -> MemoryReply:
    manifest = store.manifest
    return MemoryReply(
        name=store.name,
        hash=store.hash,
        created=manifest["made_by"]["created"],
        rows=len(store),
        codec=store.codec,
        num_shards=store.num_shards,
        num_overlays=len(manifest["overlays"]),
        num_tombstones=len(manifest["tombstones"]),
        fingerprints=Counter(fingerprint.hash for fingerprint in store.shard_fingerprints),
        counts=manifest["counts"],
        num_dead_letters=_num_dead_letters(store.artefact),
    )


def _chunks_reply(store: MemoryStore, asked: ChunksQuery) -> ChunksReply:
    if not (rows := store.rows_of(asked.document)):
        raise InputError(f"document: the MEMORY has no row of {asked.document[:100]!r}; correct the id")
    ordered = sorted(store.records(rows), key=lambda chunk: (chunk.document_id != asked.document, chunk.start))
    shown = [
        ChunkReply(**{name: getattr(chunk, name) for name in ChunkReply.model_fields} | {"row_id": str(chunk.row_id)})
        for chunk in ordered[asked.offset : asked.offset + asked.limit]
    ]
    return ChunksReply(total=len(rows), chunks=shown)


def _letter_files(artefact: Artefact) -> list[dict[str, Any]]:
    return [entry for entry in artefact.manifest["files"] if entry["path"].startswith(DEAD_LETTERS)]


def _num_dead_letters(artefact: Artefact) -> int:
    return sum(entry["rows"] for entry in _letter_files(artefact))


def _dead_letters(artefact: Artefact, offset: int) -> Iterator[DeadLetterReply]:
    """Dead letters from the given one on; files before it are not read."""
    for entry in _letter_files(artefact):
        if offset < entry["rows"]:
            with artefact.file(entry["path"]).open(encoding="utf-8") as lines:
                for line in itertools.islice(lines, offset, None):
                    yield DeadLetterReply(**json.loads(line))
        offset = max(0, offset - entry["rows"])


_ELSEWHERE = {"kind", "format_version", "fingerprint", "parent", "counts", "files", "made_by"}
_LONG = {"shards", "overlays", "tombstones", "sources", "shard_fingerprints"}


def _artefact_reply(artefact: Artefact) -> ArtefactReply:
    manifest, made = artefact.manifest, artefact.manifest["made_by"]
    return ArtefactReply(
        kind=artefact.kind,
        name=artefact.name,
        hash=artefact.hash,
        parent=manifest["parent"],
        created=made["created"],
        counts=manifest["counts"],
        recipe=made["recipe"],
        versions=made["versions"],
        fields={name: value for name, value in manifest.items() if name not in _ELSEWHERE | _LONG},
    )
