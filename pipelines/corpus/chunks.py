"""The first steps of every corpus job: read and filter a unit, chunk a document."""

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from clara.config.model import Prompts
from clara.data.fields import Fields
from clara.data.records import Chunk, Document
from clara.model.artefact import Checkpoint
from clara.model.backbone_files import load_tokenizer
from clara.model.prompts import PromptBuilder, token_spans
from clara.storage.artefact import Artefact
from clara.storage.paths import Name
from pipelines.corpus.census import Census
from pipelines.corpus.chunking import ChunkingError, Tokens, chunk_document
from pipelines.corpus.counts import (
    CHUNKS,
    CUT_TOKENS,
    DOCUMENTS_TRUNCATED,
    SPLIT,
    SPLIT_TOKENS,
    TRUNCATED,
    TRUNCATED_TOKENS,
)
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import SNIPPET_CHARACTERS
from pipelines.corpus.filters import Filters, why_dropped
from pipelines.corpus.near_duplicates import MinHashSettings
from pipelines.corpus.readers import read_unit
from pipelines.corpus.splits import Unit


class Reading(Protocol):
    """Settings of a job for reading records; for `limit` and `min_hash` see `MemoryJob`."""

    @property
    def fields(self) -> Fields: ...  # noqa: D102

    @property
    def filters(self) -> Filters: ...  # noqa: D102

    @property
    def limit(self) -> int: ...  # noqa: D102

    @property
    def min_hash(self) -> MinHashSettings | None: ...  # noqa: D102


class Limits(Protocol):
    """Limits of a chunk, in tokens."""

    @property
    def max_tokens(self) -> int: ...  # noqa: D102

    @property
    def overlap_tokens(self) -> int: ...  # noqa: D102


def documents_of(unit: Unit, job: Reading, census: Census | None = None) -> Iterator[Document | DeadLetter]:
    """Each record of a unit in order: a document if it passes the filters, else a dead letter. See `read_unit`."""
    for found in read_unit(unit, job.fields, census):
        if isinstance(found, Document) and (why := why_dropped(found, job.filters)):
            snippet = found.text[:SNIPPET_CHARACTERS]
            yield DeadLetter(found.source, found.line, *why, snippet, dropped=True, document_id=found.id)
        else:
            yield found


def chunks_of(document: Document, tokens: Tokens, limits: Limits) -> list[Chunk] | DeadLetter:
    """The chunks of a document, or its dead letter."""
    try:
        return chunk_document(document, tokens, limits.max_tokens, limits.overlap_tokens)
    except ChunkingError as error:
        snippet = document.text[:SNIPPET_CHARACTERS]
        return DeadLetter(document.source, document.line, "not chunked", str(error), snippet, document_id=document.id)


def chunk_tallies(document: Document, chunks: Sequence[Chunk], tokens: Tokens) -> list[tuple[str, int]]:
    """Counts of a document's chunks.

    Text is never lost, it continues in the next chunk; long titles are truncated.
    """
    truncated = [chunk.num_tokens for chunk in chunks if chunk.truncated]
    split = [chunk.num_tokens for chunk in chunks] if len(chunks) > 1 else []
    title = chunks[0].title
    return [
        (CHUNKS, len(chunks)),
        (TRUNCATED, len(truncated)),
        (DOCUMENTS_TRUNCATED, int(bool(truncated))),
        (TRUNCATED_TOKENS, sum(truncated)),
        (CUT_TOKENS, tokens.count(document.title) - tokens.count(title) if title != document.title else 0),
        (SPLIT, int(bool(split))),
        (SPLIT_TOKENS, sum(split)),
    ]


def checkpoint_tokens(source: Name | Artefact) -> Tokens:
    """The part of a checkpoint's tokenizer that chunking needs; `count` agrees with `ClaraModel.document_ids`."""
    checkpoint = Checkpoint.open(source)
    return folder_tokens(checkpoint.folder / "tokenizer", checkpoint.prompts)


def folder_tokens(folder: str | os.PathLike[str], prompts: Prompts) -> Tokens:
    """The functions of the tokenizer in a folder that chunking needs."""
    builder = PromptBuilder(load_tokenizer(folder), prompts)
    # Whether special tokens are split is a state of the tokenizer, set by each call. Threads share these tokenizers, so
    # each is always called with the same setting.
    splitting = load_tokenizer(folder)

    return Tokens(lambda text: token_spans(splitting, text), lambda text: len(builder.text_ids(text)))
