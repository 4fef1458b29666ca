"""Processes that open one INDEX share its pages: none has a private copy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clara.index.build import build_index
from clara.index.search import FILE
from tests.helpers.memories import random_memory, write_memory

# Opens the INDEX, searches all of it, prints its memory maps of the file when every other process has done so, and
# waits until it may exit.
_PROGRAM = """
import re, sys
import faiss, numpy as np
from clara.index.search import FILE, MemoryIndex
from clara.memory.store import MemoryStore
memory, index = sys.argv[1:]
store = MemoryStore.open(memory)
opened = MemoryIndex.open(index, store)
lists = faiss.try_extract_index_ivf(opened.faiss)
if lists is not None:
    lists.nprobe = lists.nlist
opened.search(store.memory(store.row_ids[:5]), 10, 200)
print("searched", flush=True)
sys.stdin.readline()
inside, figures = False, {}
for line in open("/proc/self/smaps"):
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        inside = line.rstrip().endswith("/" + FILE)
    elif inside and line.rstrip().endswith("kB"):
        name, value, _ = line.split()
        figures[name] = figures.get(name, 0) + int(value)
print(figures["Rss:"], figures["Pss:"], figures["Private_Dirty:"], figures["Private_Clean:"], flush=True)
sys.stdin.readline()
"""
_PROCESSES = 3


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/smaps").is_file(), reason="this system does not show the memory maps of a process"
)
@pytest.mark.parametrize("factory", ["IVF16,Flat", "Flat", "SQfp16"])
def test_processes_share_the_pages_of_an_index(tmp_path: Path, factory: str) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(20_000))
    build_index(memory, tmp_path / "index", factory, num_queries=0)
    command = [sys.executable, "-c", _PROGRAM, str(memory), str(tmp_path / "index")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")])
    }
    ranks = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(_PROCESSES)
    ]
    measured = []
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline().strip() == "searched"
        for rank in ranks:
            assert rank.stdin is not None
            assert rank.stdout is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
            measured.append([int(part) for part in rank.stdout.readline().split()])
    finally:
        for rank in ranks:
            rank.communicate("\n", timeout=60)
    size = (tmp_path / "index" / FILE).stat().st_size / 1024
    for resident, proportional, dirty, clean in measured:
        assert resident > 0.6 * size  # it is there …
        assert dirty == clean == 0  # … nothing of it is this process's alone …
        assert proportional < resident * 1.05 / _PROCESSES + 4  # … and each is charged its share
