"""The steps of a command that writes one artefact: dry run, up to date?, lock, clear, write, report."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from clara.errors import InputError
from clara.storage import folders, paths
from clara.storage.base import StorageError
from clara.storage.manifest import MANIFEST, canonical_json, read_manifest, up_to_date
from pipelines.job.locks import Lease, locked

OUTCOME = ".outcome.json"
"""File in which a pipeline leaves its outcome for the command that started it."""

_LOG = logging.getLogger(__name__)
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


def nothing() -> None:
    """Default of a step that a command does not have."""


@dataclass(frozen=True)
class ArtefactJob(Generic[Prepared, Result]):
    """A command that writes one artefact, as the functions that `run` calls in order.

    Attributes:
        output: directory or URL of the artefact, as the user named it.
        kind: of the artefact.
        plan: returns what `--dry-run` prints.
        recipe: returns what determines the artefact; None: `write` itself finds out whether it is up to date.
        prepare: runs before the output is locked or created, e.g. reads the input; its result goes to `write`.
        write: makes the artefact while the output is locked; gets the lease where the output is a URL.
        report: prints the result of `write`, after the lock is released.
        clear: runs under the lock, before `write`: refuses or removes what is there.
        tidy: runs if the artefact is up to date, e.g. removes leftovers of a killed run.
        must_run: True if the job must run although the artefact is up to date.
    """

    output: paths.Name
    kind: str
    plan: Callable[[], Mapping[str, Any]]
    recipe: Callable[[], Mapping[str, Any]] | None
    prepare: Callable[[], Prepared]
    write: Callable[[Prepared, Lease | None], Result]
    report: Callable[[Result], None]
    clear: Callable[[], None] = nothing
    tidy: Callable[[], None] = nothing
    must_run: Callable[[], bool] = lambda: False

    def run(self, *, dry_run: bool) -> int:
        """Run the command. Returns the exit status.

        Raises:
            InputError: another job writes to the output, or as raised by the steps.
        """
        if dry_run:
            print(json.dumps(self.plan(), indent=1, ensure_ascii=False))
            return 0
        if self.recipe and up_to_date(self.output, self.kind, self.recipe()) and not self.must_run():
            self.tidy()
            print(f"{self.output}: up to date")
            return 0
        prepared = self.prepare()
        with locked(self.output) as lease:
            self.clear()
            result = self.write(prepared, lease)
        self.report(result)
        return 0


def invalidate_manifest(output: paths.Name, overwrite: bool, recipe: Mapping[str, Any] | None = None) -> None:
    """Remove the manifest of an artefact whose files are about to change.

    Args:
        output: the artefact.
        overwrite: whether an artefact of another recipe may be replaced.
        recipe: of a job that rebuilds only missing files: if the existing artefact has this recipe but lost files, warn
            and rebuild only those; `overwrite` is not needed.

    Raises:
        InputError: a finished artefact of another recipe exists, and `overwrite` is false.
    """
    directory = folders.folder(output)
    directory.remove([OUTCOME])
    if directory.read(MANIFEST) is None:
        return
    lost = _lost_files(output, recipe) if recipe is not None else []
    if lost:
        more = f" (and {len(lost) - 1} more files)" if len(lost) > 1 else ""
        _LOG.warning(
            "%s: missing or of the wrong size%s; missing files are rebuilt, intact ones are kept",
            paths.join(output, lost[0]),
            more,
        )
    elif not overwrite:
        raise InputError(
            f"--output {output}: holds a finished artefact of another recipe (other input, model or settings); "
            "choose another directory, or replace it with --overwrite"
        )
    directory.remove([MANIFEST])


def _lost_files(output: paths.Name, recipe: Mapping[str, Any]) -> list[str]:
    """Files of a finished artefact of this recipe that are missing or of the wrong size."""
    try:
        manifest = read_manifest(output)
    except StorageError:
        raise
    except InputError:
        return []
    if manifest["made_by"].get("recipe") != json.loads(canonical_json(recipe)):
        return []
    expected = {entry["path"]: entry["bytes"] for entry in manifest["files"]}
    sizes = folders.folder(output).sizes(expected)
    return sorted(path for path, size in expected.items() if sizes.get(path) != size)
