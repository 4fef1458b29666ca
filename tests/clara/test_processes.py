"""A process that works for another one ends when that one is killed, and not before."""

import os
import subprocess
import sys
import time

import psutil

from clara.processes import exists

CHILD = (
    "import os, sys, time; from clara.processes import end_with_parent; "
    "end_with_parent({parent}); print('watches', flush=True); time.sleep(300)"
)
PARENT = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); "
    "print(child.pid, flush=True); time.sleep(300)"
)
WAIT_SECONDS = 60


def test_it_ends_with_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.format(parent="os.getppid()")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        said = {
            parent.stdout.readline().strip(),
            parent.stdout.readline().strip(),
        }  # the parent's line and the child's, in either order
        assert "watches" in said
        child = psutil.Process(int((said - {"watches"}).pop()))
        time.sleep(1.5)  # several looks
        assert child.is_running()
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=WAIT_SECONDS)
        assert gone == [child]


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(parent=-1)], timeout=WAIT_SECONDS, check=False, stdout=subprocess.DEVNULL
    )
    assert done.returncode == 1


def test_a_process_exists_until_it_has_ended() -> None:
    assert exists(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert exists(process.pid)
        process.kill()
        deadline = time.monotonic() + WAIT_SECONDS
        while exists(process.pid):  # nobody has asked for its exit status yet
            assert time.monotonic() < deadline
    assert not exists(process.pid)
