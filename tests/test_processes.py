"""A process that works for another one ends when that one is killed, and not before."""

import subprocess
import sys
import time

import psutil

CHILD = "import os, sys, time; from clara.processes import end_with_parent; end_with_parent({parent}); print('watches', flush=True); time.sleep(300)"
PARENT = "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(child.pid, flush=True); time.sleep(300)"
WAIT_SECONDS = 60


def test_it_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD.format(parent="os.getppid()")], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}  # the parent's line and the child's, in either order
        assert "watches" in said
        child = psutil.Process(int((said - {"watches"}).pop()))
        time.sleep(1.5)  # several looks
        assert child.is_running()
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=WAIT_SECONDS)
        assert gone == [child]


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(parent=-1)], timeout=WAIT_SECONDS, check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 1
