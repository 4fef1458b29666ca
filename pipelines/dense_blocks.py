"""Blocks of an INDEX's dense vectors, computed by the workers of a Beam runner."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.utils.shared import Shared

from clara.config.tree import Retrieval
from clara.index.dense import BlockWriter
from clara.index.dense_model import open_encoder
from clara.index.search import KIND
from clara.memory.store import MemoryStore
from clara.processes import torch_threads
from clara.storage import paths
from clara.storage.artefact import Artefact
from pipelines.engines.runner import execute


@dataclass(frozen=True)
class BlocksJob:
    """What the workers need to know.

    Attributes:
        memory: the MEMORY.
        parent: INDEX whose vectors are taken over; empty: none.
        model: the settings of the embedding model.
        device: where it computes.
    """

    memory: str
    parent: str
    model: Retrieval
    device: str

    def writer(self) -> BlockWriter:
        """Opened by each worker process.

        Raises:
            InputError: an artefact or the model cannot be opened.
        """
        older = Artefact.open(self.parent, KIND) if self.parent else None
        return BlockWriter(MemoryStore.open(self.memory), open_encoder(self.model, self.device), older)


class WriteBlock(beam.DoFn):
    """Number of a block → the same, once it is written."""

    def __init__(self, job: BlocksJob, blocks: str) -> None:
        self._job, self._blocks = job, blocks
        self._shared = Shared()

    def process(self, number: int) -> Iterator[int]:
        """Write one block."""
        with torch_threads(1):
            self._shared.acquire(self._job.writer).write(self._blocks, number)
        yield number


def write_blocks(job: BlocksJob, pipeline: Callable[[], beam.Pipeline], blocks: str, numbers: Sequence[int]) -> None:
    """Write blocks of these numbers, see `clara.index.dense.BlockWorkers`.

    Raises:
        InputError: a worker's.
    """
    graph = pipeline()
    (
        graph
        | "blocks" >> beam.Create(numbers)
        | "spread" >> beam.Reshuffle()
        | "embed" >> beam.ParDo(WriteBlock(job, paths.absolute(blocks)))
    )
    execute(graph)
