"""What a command prints about errors: one line for those that a user can correct, the stack for bugs."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.storage.folders import atomic_write
from clara.storage.manifest import make_directory

PROGRAM = """
import errno, sys
from clara.errors import InputError, command_line
def main(argv):
    raise {error}
command_line(main)
"""


def run(error: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(error=error)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("error", "status", "wanted"),
    [
        ("InputError('corpus.jsonl:3: no text')", 2, "error: corpus.jsonl:3: no text\n"),
        ("InputError('a.jsonl:1: fields qu \\r\\n estion')", 2, "error: a.jsonl:1: fields qu estion\n"),
        (
            "InputError('at http://u:se:cret@h:5000/a, http://h:5000 and sqlite:///a@b/c')",
            2,
            "error: at http://u:***@h:5000/a, http://h:5000 and sqlite:///a@b/c\n",
        ),
        (
            "OSError(errno.ENOSPC, 'No space left on device', 'memory/a')",
            2,
            "error: memory/a: No space left on device; choose a place that you may write to, with room, "
            "and run the command again\n",
        ),
        ("KeyboardInterrupt()", 130, "interrupted; the same command resumes from what is finished\n"),
    ],
)
def test_one_line_and_a_status(error: str, status: int, wanted: str) -> None:
    done = run(error)
    assert (done.returncode, done.stderr) == (status, wanted)


@pytest.mark.parametrize("error", ["KeyError('ours')", "FileNotFoundError(errno.ENOENT, 'No such file', 'ours')"])
def test_our_own_faults_keep_their_stack(error: str) -> None:
    done = run(error)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_stack_is_there_for_the_asking() -> None:
    assert "Traceback" in run("InputError('x')", CLARA_TRACEBACK="1").stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "below"
    with pytest.raises(
        InputError, match=f"{below}: cannot be written .*choose a directory that you may write to"
    ) as caught:
        make_directory(below)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOTDIR
    with pytest.raises(InputError, match=f"{below}: cannot be written"):
        atomic_write(below, b"data")
