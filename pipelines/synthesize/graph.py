"""The Beam graph of `synthesize`: chunks, shards of chunks, requests about each, and the manifest last."""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from clara.errors import InputError
from clara.processes import torch_threads
from clara.storage.folders import atomic_write
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.exact_duplicates import UniqueChunk
from pipelines.corpus.splits import Unit
from pipelines.corpus.transforms.reading import chosen_num_shards, unique_chunks
from pipelines.job.end import add_end
from pipelines.job.progress import ShardProgress
from pipelines.synthesize import dialogues as streams
from pipelines.synthesize import shards as work
from pipelines.synthesize.dialogues import Outcome, Stream
from pipelines.synthesize.endpoint import Endpoint
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.folder_settings import FolderSettings
from pipelines.synthesize.local_model import FolderModel, in_step
from pipelines.synthesize.outcome import SynthesisJob, complete
from pipelines.synthesize.reply_cache import ReplyCache
from pipelines.synthesize.shards import Shard
from pipelines.synthesize.summary import SPENDING


class Ask(beam.DoFn):
    """(Lane, its shards) → their reports, asked and written, or found finished; or what is wrong with the model."""

    def __init__(self, job: SynthesisJob) -> None:
        self._job = job
        self._model: FolderModel | None = None  # of one instance, as its tokenizer is not for several threads

    def process(self, element: tuple[int, Iterable[Shard]]) -> Iterator[dict[str, Any]]:
        """Ask about the shards of a lane."""
        ordered = sorted(element[1], key=lambda shard: shard.name)
        try:
            if isinstance(self._job.model, EndpointSettings):
                yield from asyncio.run(ask_endpoint(self._job, self._job.model, ordered))
            else:
                for shard in ordered:
                    yield self._ask_folder(self._job.model, shard)
        except InputError as error:
            # Reported as the job's outcome: raised through the runner, it would be buried in Beam's stack trace.
            yield {"error": str(error)}

    def _ask_folder(self, settings: FolderSettings, shard: Shard) -> dict[str, Any]:
        output = Path(self._job.output)
        progress = _progress(self._job, shard)
        if report := work.finished(output, shard):
            progress.report(shard.num_chunks)
            return report
        model = self._model = self._model or FolderModel(settings)
        chunks = work.read_chunks(output, shard)
        # One thread a process: the cores are used by processes, and the last bits depend on the number of threads.
        with torch_threads(1):
            kinds = len(self._job.settings.kinds)
            outcomes = in_step(_streams(self._job, chunks), model.replies, lambda done: progress.report(done // kinds))
        return work.write_result(output, shard, chunks, outcomes)


def _progress(job: SynthesisJob, shard: Shard) -> ShardProgress:
    progress = ShardProgress(Path(job.output) / work.WORK, shard.name, shard.num_chunks)
    progress.report(0)
    return progress


def _streams(job: SynthesisJob, chunks: Sequence[tuple[Any, int]]) -> list[Stream]:
    return [
        streams.stream(chunk, kind, job.templates, job.settings) for chunk, _ in chunks for kind in job.settings.kinds
    ]


async def ask_endpoint(job: SynthesisJob, settings: EndpointSettings, shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """Ask about all shards, a few of them at once, so that the end of one is no lull. Returns their reports.

    Raises:
        InputError: the endpoint can't be used; what it has answered is kept.
    """
    cache = ReplyCache(Path(job.cache))
    endpoint = Endpoint(settings, cache)
    open_shards = asyncio.Semaphore(2 + settings.concurrency // 64)

    async def outcome(stream: Stream, ended: Counter[str], progress: ShardProgress) -> Outcome:
        requests = next(stream)
        try:
            while True:
                requests = stream.send(await asyncio.gather(*map(endpoint.ask, requests)))
        except StopIteration as end:
            ended["streams"] += 1
            progress.report(ended["streams"] // len(job.settings.kinds))
            return end.value

    async def report(shard: Shard) -> dict[str, Any]:
        async with open_shards:
            output, progress = Path(job.output), _progress(job, shard)
            if found := work.finished(output, shard):
                progress.report(shard.num_chunks)
                return found
            chunks, ended = work.read_chunks(output, shard), Counter[str]()
            outcomes = await asyncio.gather(*(outcome(stream, ended, progress) for stream in _streams(job, chunks)))
            return work.write_result(output, shard, chunks, outcomes)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(report(shard)) for shard in shards]
    except BaseExceptionGroup as errors:
        ours, _ = errors.split(InputError)
        raise (ours.exceptions[0] if ours else errors.exceptions[0]) from None
    finally:
        await endpoint.close()
        replies, prompt_tokens, reply_tokens = cache.totals()
        altogether = {"replies": replies, "prompt_tokens": prompt_tokens, "reply_tokens": reply_tokens}
        spent = {"this run": vars(endpoint.spending), "all replies in the cache": altogether}
        atomic_write(Path(job.output) / SPENDING, json.dumps(spent, indent=1) + "\n")
        cache.close()
    return [task.result() for task in tasks]


def _to_shard(element: tuple[str, UniqueChunk], num_shards: int) -> tuple[int, UniqueChunk]:
    return work.shard_of(element[1].chunk.row_id, num_shards), element[1]


def _plan(element: tuple[int, Iterable[UniqueChunk]], num_shards: int, job: SynthesisJob) -> tuple[int, Shard]:
    index, kept = element
    lane = 0 if isinstance(job.model, EndpointSettings) else index % job.copies if job.copies else index
    return lane, work.plan_shard(Path(job.output), index, num_shards, kept, job.key)


def _letters_of(report: Mapping[str, Any], output: str) -> list[DeadLetter]:
    return [] if "error" in report else work.read_letters(Path(output), report["name"])


def add_synthesis_job(pipeline: beam.Pipeline, units: Sequence[Unit], job: SynthesisJob) -> PCollection[dict[str, Any]]:
    """Add the whole job to a pipeline. Returns its one outcome: `{"counts": …}` or `{"error": …}`."""
    unique, tallies, letters, several = unique_chunks(
        pipeline, units, job.chunking, job.chunking, job.chunking.load_tokens
    )
    num_shards = chosen_num_shards(pipeline, unique, job.settings.num_shards, work.default_num_shards)
    reports = (
        unique
        | "AssignShard" >> beam.Map(_to_shard, num_shards)
        | "GatherShards" >> beam.GroupByKey()
        | "PlanShards" >> beam.Map(_plan, num_shards, job)
        | "GatherLanes" >> beam.GroupByKey()
        | "Ask" >> beam.ParDo(Ask(job))
    )
    letters.append(reports | "LettersOfShards" >> beam.FlatMap(_letters_of, job.output))
    return add_end(pipeline, functools.partial(complete, job), job.output, reports, tallies, letters, several)
