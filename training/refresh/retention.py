"""Which MEMORY versions of a run may go: what nobody uses is deleted, and nothing that something points to.

A version stays while it is in use, is one of the `joint.refresh.keep_versions` before that, is named by a run state, or
is pinned: registering a model pins the MEMORY and INDEX that it points to, and so does an empty file of that name. What
a run only read is never its to delete.
"""

import json
import logging
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST, manifest_hash, read_manifest
from training.loop.lines import lines_of

logger = logging.getLogger(__name__)
PIN = "pinned.jsonl"
DELETED = "deleted-versions.jsonl"
_NOTE = re.compile(r"refresh-v(\d+)\.json")


def pin(directory: Path, by: str) -> None:
    """Note in an artefact's directory that something outside points to it, so that no run deletes or replaces it."""
    path = directory / PIN
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    line = json.dumps({"by": by}) + "\n"
    if line not in before:
        atomic_write(path, before + line)


def pinned_by(directory: Path) -> str:
    """What points to an artefact, for a message; empty where nothing does."""
    path = directory / PIN
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    return ", ".join(json.loads(line)["by"] for line in lines) or "an empty pin"


@dataclass(frozen=True)
class Made:
    """A version that a run made: its number, the directories that belong to it, and the note about it."""

    number: int
    memory: Path
    index: Path
    snapshot: Path
    note: Path

    @property
    def own(self) -> bool:
        """Whether the files are what the run made: another run may have used the names since."""
        return bool(manifest_hash(self.memory) == json.loads(self.note.read_text())["memory_hash"])

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        folders = (self.memory, self.index, self.snapshot)
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def made_versions(output: Path, run: Path) -> list[Made]:
    """Versions that a run made and whose names are still taken, ascending."""
    found = []
    for note in run.glob("refresh-v*.json"):
        if (match := _NOTE.fullmatch(note.name)) is None:
            continue
        number = int(match[1])
        version = Made(
            number, output / f"memory-v{number}", output / f"index-v{number}", run / f"snapshot-v{number}", note
        )
        if (version.memory / MANIFEST).is_file():
            found.append(version)
    return sorted(found, key=lambda version: version.number)


def in_run_states(states: Iterable[Path]) -> set[int]:
    """Numbers of versions that run states need to resume: the one in use, and one under way with its snapshot."""
    numbers = set()
    for path in states:
        try:
            versions = json.loads(path.read_text())["stage"]["versions"]
        except FileNotFoundError:  # one that found no room is deleted while the next steps are made
            continue
        numbers |= {int(versions[name]["number"]) for name in ("current", "pending") if versions[name]}
    return numbers


def disposable(made: Collection[Made], *, current: int, keep: int, needed: Collection[int]) -> list[Made]:
    """Which of a run's versions nobody uses.

    Args:
        made: by the run.
        current: number of the version in use.
        keep: versions before that one which are kept for rollback.
        needed: numbers that something else points to.
    """
    older = sorted((v for v in made if v.number < current), key=lambda v: v.number)
    return [
        v
        for v in older[: max(0, len(older) - keep)]
        if v.number not in needed and not pinned_by(v.memory) and not pinned_by(v.index)
    ]


def prune(output: Path, run: Path, *, current: int, keep: int, states: Iterable[Path], step: int) -> list[int]:
    """Delete what nobody uses. Returns the numbers.

    Args:
        output: directory of the versions.
        run: the run's own directory; a line for each deleted version goes to `deleted-versions.jsonl` there.
        current: number of the version in use.
        keep: versions before it that stay.
        states: `state.json` of the run states.
        step: updates made so far, for the note.
    """
    made = made_versions(output, run)
    if sum(v.number < current for v in made) <= keep:
        return []
    done = []
    gone = disposable(made, current=current, keep=keep, needed=in_run_states(states))
    for version in gone:
        if not version.own:
            continue
        size = version.size_bytes
        try:
            for folder in (version.memory, version.index, version.snapshot):
                _delete(folder)
        except OSError as error:
            logger.warning("versions: version %d is not deleted: %s", version.number, error)
            continue
        try:
            with open(run / DELETED, "a", encoding="utf-8") as file:
                file.write(json.dumps({"number": version.number, "after_step": step, "bytes": size}) + "\n")
        except OSError as error:
            logger.warning("versions: %s lacks version %d: %s", run / DELETED, version.number, error)
        logger.info("versions: version %d is deleted (%d bytes; in use: %d)", version.number, size, current)
        done.append(version.number)
    return done


def discard(output: Path, run: Path, number: int, fingerprint: str, *, states: Iterable[Path]) -> None:
    """Delete the files of a version that is given up, to free their room. Logs what cannot be deleted.

    What has no manifest is nobody's. What is whole is this run's only if it was encoded by the snapshot of this
    version; and not if a run noted it, which this one did not, or something points to it: runs of other settings write
    the same names.

    Args:
        output: directory of the versions.
        run: the run's own directory.
        number: of the version.
        fingerprint: of what its snapshot encodes; empty: there is no whole snapshot, so nothing whole is of it.
        states: notes of run states; one that names the version as under way keeps its snapshot, if that is whole.
    """
    try:
        notes = [
            json.loads(note.read_text()) for note in output.glob(f"run-*/refresh-v{number}.json") if note.is_file()
        ]
        noted = {note[name] for note in notes for name in ("memory_hash", "index_hash")}
        for folder in (output / f"index-v{number}", output / f"memory-v{number}"):
            whole = (folder / MANIFEST).is_file()
            own = not whole or (
                read_manifest(folder)["fingerprint"] == fingerprint and manifest_hash(folder) not in noted
            )
            if own and not pinned_by(folder):
                _delete(folder)
        if not fingerprint or number not in in_run_states(states):
            _delete(run / f"snapshot-v{number}")
    except (OSError, InputError) as error:
        logger.warning("versions: what version %d left is not all deleted: %s", number, error)


def _delete(artefact: Path) -> None:
    """Half deleted, it must be no artefact any more."""
    (artefact / MANIFEST).unlink(missing_ok=True)
    if artefact.exists():
        shutil.rmtree(artefact)


def forget_later(run: Path, number: int) -> None:
    """Delete notes about versions above a number, made after the state that a killed run resumes from.

    The files stay: made again from the same snapshot, they are found finished.
    """
    for note in run.glob("refresh-v*.json"):
        if (match := _NOTE.fullmatch(note.name)) is not None and int(match[1]) > number:
            note.unlink()


def deleted(run: Path) -> list[dict[str, int]]:
    """What `prune` deleted in a run."""
    return lines_of(run / DELETED)


def check_replaceable(directory: Path) -> None:
    """Refuse to write over a version that something outside points to.

    Raises:
        InputError: it is pinned.
    """
    if by := pinned_by(directory):
        raise InputError(
            f"{directory}: {by} points to it, so it is not replaced; give the run another output (or delete its {PIN})"
        )
