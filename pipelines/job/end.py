"""The end of a corpus job's Beam graph: check the counts, complete the artefact."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList, AsSideInput, PCollection

from clara.errors import InputError
from clara.storage import paths
from clara.storage.base import StorageError
from clara.storage.folders import atomic_write
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.transforms.dead_letters import count_reasons, write_letters
from pipelines.job.artefact_job import OUTCOME

Completion = Callable[..., dict[str, Any]]
"""(Reports, entries of letter files, dead letters by (dropped, reason), tallies, …) → counts; writes the manifest."""


def _outcome(_: None, complete: Completion, output: str, *parts: Any) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = {"counts": complete(*parts)}
    except StorageError:
        raise  # the outcome could not be written either
    except InputError as error:
        # Written as the outcome: raised through the runner, it would be buried in Beam's stack trace.
        outcome = {"error": str(error)}
    atomic_write(paths.join(output, OUTCOME), json.dumps(outcome))
    return outcome


def add_outcome(
    pipeline: beam.Pipeline, complete: Completion, output: str, *parts: AsSideInput
) -> PCollection[dict[str, Any]]:
    """Complete the artefact when all parts exist. Returns the job's one outcome: `{"counts": …}` or `{"error": …}`."""
    return pipeline | "Once" >> beam.Create([None]) | "Complete" >> beam.Map(_outcome, complete, output, *parts)


def add_end(
    pipeline: beam.Pipeline,
    complete: Completion,
    output: str,
    reports: PCollection[dict[str, Any]],
    tallies: Sequence[PCollection[tuple[str, int]]],
    letters: Sequence[PCollection[DeadLetter]],
    *further: AsSideInput,
) -> PCollection[dict[str, Any]]:
    """Write the dead letters, sum the tallies, and call `add_outcome`."""
    totals = tallies | "AllTallies" >> beam.Flatten() | "SumTallies" >> beam.CombinePerKey(sum)
    all_letters = letters | "AllLetters" >> beam.Flatten()
    files, reasons = write_letters(all_letters, output), count_reasons(all_letters)
    return add_outcome(
        pipeline, complete, output, AsList(reports), AsList(files), AsDict(reasons), AsDict(totals), *further
    )
