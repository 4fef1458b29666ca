"""The Beam graph of `build_memory`: read, chunk, keep each content once, compress a shard at a time, and complete with the manifest last."""

import functools
import math
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection
from apache_beam.transforms import combiners
from apache_beam.utils.shared import Shared
from transformers.utils.logging import disable_progress_bar

from clara.config.model import Backbone
from clara.data.records import Chunk
from clara.errors import InputError
from clara.memory.codec import CODECS, codebook_of
from clara.memory.compress import make_codebook, write_memory_shard
from clara.memory.fingerprint import check, of_model
from clara.memory.product_quantiser import num_sampled, sample_order
from clara.memory.shards import shard_name
from clara.memory.update import write_overlay
from clara.model.checkpoint import load_checkpoint
from clara.model.model import ClaraModel
from clara.processes import torch_threads
from clara.storage.base import StorageError
from pipelines.build_memory.outcome import Job, check_sees, complete
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.chunks import checkpoint_tokens, chosen_num_shards, unique_chunks
from pipelines.corpus.dead_letters import COUNTERS, failures
from pipelines.corpus.exact_duplicates import Kept
from pipelines.corpus.splits import Unit
from pipelines.engines.dataflow import apart, on_gpu
from pipelines.job.completion import add_end
from pipelines.job.progress import ShardProgress


def default_num_shards(num_chunks: int) -> int:
    """Shards by the number of chunks: up to 16 have 128 rows at most, up to 1,024 have 1,024, beyond that they have 4,096.

    A few shards for each worker, where there are few chunks; then rows enough that batches are full and their lengths
    alike. A power of two, so that a corpus that grew a little has the same shards, and that its chunks can be put aside
    before they are counted.
    """
    wanted = max(
        1, min(math.ceil(num_chunks / 128), 16), min(math.ceil(num_chunks / 1024), 1024), math.ceil(num_chunks / 4096)
    )
    return 1 << (wanted - 1).bit_length()


class WriteShards(beam.DoFn):
    """(Shard, its chunks) → report of the shard, compressed and written."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shared = Shared()

    def process(
        self, element: tuple[int, Any], num_shards: int, codebook: dict[str, Any] | None
    ) -> Iterator[dict[str, Any]]:
        """Compress and write one shard, or find it finished; the codebook, if there is to be one, lies in MEMORY by now."""
        index, candidates = element
        yield self.written(
            index, [candidate for candidate in candidates if candidate is not None], num_shards, codebook
        )

    def written(
        self, index: int, kept: Sequence[Kept], num_shards: int, codebook: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The report of one shard that holds these, once it is on disk."""
        name = shard_name(index, num_shards)
        progress = ShardProgress(self._job.output, name, len(kept))
        progress.tell(0)
        try:
            if codebook and "error" in codebook:
                raise InputError(codebook["error"])
            # One thread a process: the cores are used by processes, and the last bits depend on the number of threads.
            with torch_threads(1):
                report = self._write(index, name, [candidate.chunk for candidate in kept], progress)
            progress.tell(len(kept))
        except StorageError:
            raise  # not shard by shard: where the store is away, the outcome could not be told either
        except InputError as error:
            # Told by the job as its outcome: through the runner it would come as a stack of Beam's.
            report = {"name": name, "rows": 0, "files": [], "failures": [], "reused": False, "error": str(error)}
        lines = {candidate.chunk.chunk_id: candidate.line for candidate in kept}
        report["failures"] = [{**failure, "line": lines[failure["chunk_id"]]} for failure in report["failures"]]
        Metrics.counter(COUNTERS, "rows").inc(report["rows"])
        Metrics.counter(COUNTERS, "shards reused" if report["reused"] else "shards compressed").inc()
        return report

    def _write(self, index: int, name: str, chunks: list[Chunk], progress: ShardProgress) -> dict[str, Any]:
        job = self._job
        if job.update:
            return write_overlay(
                self._model,
                chunks,
                job.update,
                index,
                job.output,
                fingerprint=job.fingerprint,
                batch_tokens=job.batch_tokens,
                on_progress=progress.tell,
            )
        return write_memory_shard(
            self._model,
            chunks,
            job.output,
            name,
            fingerprint=job.fingerprint,
            codec=job.codec,
            batch_tokens=job.batch_tokens,
            codebook=codebook_of(job.output, job.codec, job.fingerprint.hidden_size),
            on_progress=progress.tell,
        )

    def _model(self) -> ClaraModel:
        return self._shared.acquire(lambda: load_compressor(self._job))


def trained_codebook(job: Job, sample: Sequence[Kept]) -> dict[str, Any] | None:
    """The manifest entry of the codebook trained on a sample, or `{"error": …}`; None where the codec needs none."""
    try:
        with torch_threads(1):
            return make_codebook(
                lambda: load_compressor(job),
                [kept.chunk for kept in sample],
                job.output,
                fingerprint=job.fingerprint,
                codec=job.codec,
                batch_tokens=job.batch_tokens,
            )
    except StorageError:
        raise
    except InputError as error:
        return {"error": str(error)}


def load_compressor(job: Job) -> ClaraModel:
    """The model of a job, in eval mode.

    Raises:
        InputError: what lies at its path on this machine is another than where the job was submitted.
    """
    disable_progress_bar()  # the library's, for weights: the job has its own
    backbone = Backbone.model_validate({"path": job.backbone, "dtype": job.fingerprint.dtype})
    model = load_checkpoint(job.checkpoint, backbone, device=job.device).eval()
    wanted = job.fingerprint
    found = of_model(model, wanted.encoding)
    check([wanted], found, f"--checkpoint {job.checkpoint} on {socket.gethostname()}")
    return model


def _tokens_of(job: Job) -> Tokens:
    check_sees(job)
    return checkpoint_tokens(job.checkpoint)


def _to_shard(element: tuple[str, Kept], num_shards: int) -> tuple[int, Kept | None]:
    return element[1].chunk.row_id % num_shards, element[1]


def _to_empty_shard(index: int) -> tuple[int, Kept | None]:
    return index, None


def _codebook(
    pipeline: beam.Pipeline, unique: PCollection[tuple[str, Kept]], job: Job
) -> PCollection[dict[str, Any] | None]:
    """The codebook's manifest entry, once it lies in MEMORY; an update keeps the older version's."""
    if job.update or not CODECS[job.codec].has_codebook:
        return pipeline | "NoCodebook" >> beam.Create([None])
    size, hint = num_sampled(job.fingerprint.num_memory_tokens), job.accelerator
    sample = (
        unique
        | "Contents" >> beam.Values()
        | "SampleChunks" >> combiners.Top.Smallest(size, key=lambda kept: sample_order(kept.chunk.row_id))
    )
    trained = apart(sample, hint, "SampleToGPU") | "TrainCodebook" >> on_gpu(
        beam.Map(lambda sample: trained_codebook(job, sample)), hint
    )
    return apart(trained, hint, "CodebookFromGPU")


def add_memory_job(pipeline: beam.Pipeline, units: Sequence[Unit], job: Job) -> PCollection[dict[str, Any]]:
    """Add the whole job to a pipeline. Returns its one outcome: `{"counts": …}` or `{"error": …}`."""
    unique, tallies, letters, several = unique_chunks(
        pipeline, units, job, job.fingerprint, functools.partial(_tokens_of, job)
    )
    num_shards = chosen_num_shards(pipeline, unique, job.num_shards, default_num_shards)
    codebook = AsSingleton(_codebook(pipeline, unique, job))
    assigned = [unique | "AssignShard" >> beam.Map(_to_shard, num_shards)]
    if job.update:
        # A shard of which the corpus has nothing any more is a change too.
        assigned.append(
            pipeline | "ListShards" >> beam.Create(range(job.num_shards)) | "VisitShards" >> beam.Map(_to_empty_shard)
        )
    compress = on_gpu(beam.ParDo(WriteShards(job), num_shards, codebook), job.accelerator)
    written = (
        assigned | "AllShards" >> beam.Flatten() | "GatherShards" >> beam.GroupByKey() | "CompressAndWrite" >> compress
    )
    reports = apart(written, job.accelerator, "ReportsFromGPU")
    letters.append(failures(reports))
    return add_end(
        pipeline, functools.partial(complete, job), job.output, reports, tallies, letters, several, num_shards, codebook
    )
