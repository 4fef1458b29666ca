"""Reads the outcome of a corpus job, and reports its counts."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from clara.data.fields import FIELDS, Fields
from clara.errors import InputError
from clara.storage import folders, paths
from clara.storage.manifest import MANIFEST
from pipelines.corpus import census
from pipelines.corpus.dead_letters import NAME
from pipelines.corpus.document_ids import EXAMPLE, SEVERAL
from pipelines.job.artefact_job import OUTCOME

_LOG = logging.getLogger(__name__)


def read_outcome(output: paths.Name) -> dict[str, Any]:
    """Read the counts of a job that has run, and remove the outcome file.

    Raises:
        InputError: the outcome is an error.
        RuntimeError: there is no outcome.
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


def report_counts(counts: Mapping[str, Any], output: paths.Name, remedy: str = "", *, fields: Fields = FIELDS) -> None:
    """Print the counts, and warn of records that could not be used; `remedy` ends that warning.

    `fields` are the names that were read, for the warnings of `census.report`.
    """
    for name, value in counts.items():
        if name in census.WARNED:
            continue
        print(f"{name:>28}  {value}")
    if counts.get(EXAMPLE):
        _LOG.warning(
            "%d document ids are shared by different texts, all of which were kept, so that a question's positive "
            "means all of them; the first is %s; give each document its own id",
            counts[SEVERAL],
            counts[EXAMPLE],
        )
    census.report(counts, fields)
    if counts["dead letters"]:
        _LOG.warning(
            "%d records could not be used: %s; see %s%s",
            counts["dead letters"],
            counts["dead letters by reason"],
            paths.join(output, f"{NAME}*.jsonl"),
            f"; {remedy}" if remedy else "",
        )
