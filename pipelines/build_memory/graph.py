"""The Beam graph of `build_memory`: read, chunk, deduplicate, compress shard by shard, manifest last.

    units of files ─▶ unique chunks ─▶ (shard, chunks) ─▶ reports of shards ─▶ manifest
                                └─▶ number of shards, codebook ─▶┘

The functions that it calls are those of the local run (`pipelines.build_memory.local`), which needs no Beam.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared

from clara.memory.codec import CODECS
from clara.memory.product_quantiser import num_sampled, sample_order
from clara.model.model import ClaraModel
from pipelines.build_memory.outcome import MemoryJob, check_sees, complete
from pipelines.build_memory.shard import compress_shard, default_num_shards, load_compressor, trained_codebook
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.chunks import checkpoint_tokens
from pipelines.corpus.exact_duplicates import UniqueChunk
from pipelines.corpus.splits import Unit
from pipelines.corpus.transforms.dead_letters import COUNTERS, failures
from pipelines.corpus.transforms.reading import chosen_num_shards, unique_chunks
from pipelines.engines.dataflow import fusion_break, on_gpu
from pipelines.job.end import add_end


class WriteShards(beam.DoFn):
    """(Shard, its chunks) → report of the shard, compressed and written."""

    def __init__(self, job: MemoryJob) -> None:
        self._job = job
        self._shared = Shared()

    def process(
        self, element: tuple[int, Any], num_shards: int, codebook: dict[str, Any] | None
    ) -> Iterator[dict[str, Any]]:
        """See `compress_shard`."""
        index, candidates = element
        kept = [candidate for candidate in candidates if candidate is not None]
        model = functools.partial(_model_of, self._shared, self._job)
        report = compress_shard(self._job, index, kept, num_shards, codebook, model)
        Metrics.counter(COUNTERS, "rows").inc(report["rows"])
        Metrics.counter(COUNTERS, "shards reused" if report["reused"] else "shards compressed").inc()
        yield report


def _model_of(shared: Shared, job: MemoryJob) -> ClaraModel:
    return shared.acquire(lambda: load_compressor(job))


def _tokens_of(job: MemoryJob) -> Tokens:
    check_sees(job)
    return checkpoint_tokens(job.checkpoint)


def _to_shard(element: tuple[str, UniqueChunk], num_shards: int) -> tuple[int, UniqueChunk | None]:
    return element[1].chunk.row_id % num_shards, element[1]


def _to_empty_shard(index: int) -> tuple[int, UniqueChunk | None]:
    return index, None


def _codebook(
    pipeline: beam.Pipeline, unique: PCollection[tuple[str, UniqueChunk]], job: MemoryJob
) -> PCollection[dict[str, Any] | None]:
    """The manifest entry of the codebook, once it is written to MEMORY; None for an update, which keeps the older."""
    if job.update or not CODECS[job.codec].has_codebook:
        return pipeline | "NoCodebook" >> beam.Create([None])
    size, hint = num_sampled(job.fingerprint.num_memory_tokens), job.accelerator
    sample = (
        unique
        | "Contents" >> beam.Values()
        | "SampleChunks" >> combiners.Top.Smallest(size, key=lambda kept: sample_order(kept.chunk.row_id))
    )
    trained = fusion_break(sample, hint, "SampleToGPU") | "TrainCodebook" >> on_gpu(
        beam.Map(lambda sample: trained_codebook(job, sample, lambda: load_compressor(job))), hint
    )
    return fusion_break(trained, hint, "CodebookFromGPU")


def add_memory_job(pipeline: beam.Pipeline, units: Sequence[Unit], job: MemoryJob) -> PCollection[dict[str, Any]]:
    """Add the whole job to a pipeline. Returns its one outcome: `{"counts": …}` or `{"error": …}`."""
    unique, tallies, letters, several = unique_chunks(
        pipeline, units, job, job.fingerprint, functools.partial(_tokens_of, job)
    )
    num_shards = chosen_num_shards(pipeline, unique, job.num_shards, default_num_shards)
    codebook = AsSingleton(_codebook(pipeline, unique, job))
    assigned = [unique | "AssignShard" >> beam.Map(_to_shard, num_shards)]
    if job.update:
        # A shard without any chunk left in the corpus is a change, too.
        assigned.append(
            pipeline | "ListShards" >> beam.Create(range(job.num_shards)) | "VisitShards" >> beam.Map(_to_empty_shard)
        )
    compress = on_gpu(beam.ParDo(WriteShards(job), num_shards, codebook), job.accelerator)
    written = (
        assigned | "AllShards" >> beam.Flatten() | "GatherShards" >> beam.GroupByKey() | "CompressAndWrite" >> compress
    )
    reports = fusion_break(written, job.accelerator, "ReportsFromGPU")
    letters.append(failures(reports))
    return add_end(
        pipeline, functools.partial(complete, job), job.output, reports, tallies, letters, several, num_shards, codebook
    )
