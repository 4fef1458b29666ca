"""How every corpus job ends: once all of it is there, what was counted is checked and the artefact completed; the command reads what came of it."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList, AsSideInput, PCollection

from clara.errors import InputError
from clara.storage import folders, paths
from clara.storage.artefact import MANIFEST, atomic_write
from clara.storage.base import StorageError
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import NAME, count_reasons, write_letters
from pipelines.corpus.document_ids import EXAMPLE, SEVERAL
from pipelines.job.artefact_job import OUTCOME

_LOG = logging.getLogger(__name__)

Completion = Callable[..., dict[str, Any]]
"""(Reports, entries of letter files, letters by (dropped, reason), tallies, …) → counts; writes the manifest last of all."""


def _outcome(_: None, complete: Completion, output: str, *parts: Any) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = {"counts": complete(*parts)}
    except StorageError:
        raise  # where the store is away, the outcome could not be told either
    except InputError as error:
        # Told by the job as its outcome: through the runner it would come as a stack of Beam's.
        outcome = {"error": str(error)}
    atomic_write(paths.join(output, OUTCOME), json.dumps(outcome))
    return outcome


def add_outcome(
    pipeline: beam.Pipeline, complete: Completion, output: str, *parts: AsSideInput
) -> PCollection[dict[str, Any]]:
    """Complete the artefact when all parts are there. Returns the job's one outcome: `{"counts": …}` or `{"error": …}`."""
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
    """Write the dead letters, sum up what was counted, and `add_outcome`."""
    totals = tallies | "AllTallies" >> beam.Flatten() | "SumTallies" >> beam.CombinePerKey(sum)
    all_letters = letters | "AllLetters" >> beam.Flatten()
    files, reasons = write_letters(all_letters, output), count_reasons(all_letters)
    return add_outcome(
        pipeline, complete, output, AsList(reports), AsList(files), AsDict(reasons), AsDict(totals), *further
    )


def read_outcome(output: paths.Name) -> dict[str, Any]:
    """Counts of a job that has run, and remove the note.

    Raises:
        InputError: the job says that it failed.
        RuntimeError: it left no word.
    """
    folder = folders.folder(output)
    raw = folder.read(OUTCOME)
    if raw is None:
        raise RuntimeError(
            f"{output}: the pipeline ended without an outcome and without {MANIFEST}; see the runner's log"
        )
    outcome = json.loads(raw)
    folder.remove([OUTCOME])
    if "error" in outcome:
        raise InputError(outcome["error"])
    return dict(outcome["counts"])


def tell_counts(counts: Mapping[str, Any], output: paths.Name, remedy: str = "") -> None:
    """Tell what was done, and loudly what was not; `remedy` says what can be done about that."""
    for name, value in counts.items():
        print(f"{name:>28}  {value}")
    if counts.get(EXAMPLE):
        _LOG.warning(
            "%d document ids stand for several texts, all of which were taken, so that a question's positive means all of them; the first is %s; "
            "give each document an id of its own",
            counts[SEVERAL],
            counts[EXAMPLE],
        )
    if counts["dead letters"]:
        _LOG.warning(
            "%d records could not be used: %s; see %s%s",
            counts["dead letters"],
            counts["dead letters by reason"],
            paths.join(output, f"{NAME}*.jsonl"),
            f"; {remedy}" if remedy else "",
        )
