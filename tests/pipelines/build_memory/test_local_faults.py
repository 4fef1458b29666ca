"""Faults in the local job: killed processes and texts that the model refuses leave the dataset as it would be."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from clara.memory.store import MemoryStore
from clara.model.model import ClaraModel
from clara.storage.folders import sha256_file
from clara.storage.manifest import read_manifest
from pipelines.build_memory.command import main
from tests.helpers import tiny, warm
from tests.helpers.artefacts import finished_shards


def write_corpus(path: Path, num_documents: int) -> Path:
    rows = [{"id": f"n{n}", "text": f"Number {n} occurs here. " * (1 + n % 5)} for n in range(num_documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]) + "broken\n")
    return path


def command(corpus: Path, output: Path, checkpoint: Path, *arguments: str) -> list[str]:
    fixed = ["--input", str(corpus), "--output", str(output), "--checkpoint", str(checkpoint), "--dtype=float32"]
    return [*fixed, *arguments]


def files(memory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(memory)): sha256_file(p)
        for p in sorted([*memory.glob("shard-*/[!p.]*"), *memory.glob("dead_letters*")])
    }


def test_of_a_batch_only_the_text_that_the_model_refuses_is_a_dead_letter(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny.documents()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(corpus, tmp_path / "clean", tiny_checkpoint, "--num-shards=2", "--num-workers=1")) == 0
    poisoned = rows[17]
    compress = ClaraModel.compress
    sizes: list[int] = []

    def refusing(self: ClaraModel, texts: Sequence[Sequence[int]]) -> Tensor:
        sizes.append(len(texts))
        if any(poisoned["text"] in self.tokenizer.decode(list(text)) for text in texts):
            raise RuntimeError("no kernel for this shape")
        return compress(self, texts)

    monkeypatch.setattr(ClaraModel, "compress", refusing)
    assert main(command(corpus, tmp_path / "poisoned", tiny_checkpoint, "--num-shards=2", "--num-workers=1")) == 0
    (letter,) = [json.loads(line) for line in (tmp_path / "poisoned" / "dead_letters.jsonl").read_text().splitlines()]
    assert (letter["line"], letter["reason"]) == (18, "not compressed")
    assert "no kernel for this shape" in letter["detail"]
    assert max(sizes) > 10  # it stood among others
    clean, found = (MemoryStore.open(tmp_path / name, verify=True) for name in ("clean", "poisoned"))
    assert set(clean.document_ids) - set(found.document_ids) == {poisoned["id"]}
    assert np.allclose(found.memory(found.row_ids), clean.memory(found.row_ids), atol=2e-3)
    assert read_manifest(tmp_path / "poisoned")["counts"]["dead letters by reason"] == {"not compressed": 1}


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "multiprocessing.spawn import spawn_main" in line]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_in_the_middle_of_a_shard_costs_nothing_but_time(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 1000)
    arguments = command(
        corpus, tmp_path / "memory", tiny_checkpoint, "--num-shards=40", "--num-workers=2", "--batch-tokens=200"
    )
    started = time.time()
    job = warm.start(main, arguments, said=tmp_path / "said")
    while len(finished_shards(tmp_path / "memory", started)) < 3:
        assert job.is_alive(), (tmp_path / "said").read_text()
        assert time.time() - started < 600
        time.sleep(0.02)
    workers = children(job.pid or 0)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    job.join(600)
    said = (tmp_path / "said").read_text()
    assert job.exitcode == 0, said
    assert "a worker process was killed" in said
    assert len(finished_shards(tmp_path / "memory", started)) == 40
    assert (
        main(
            command(
                corpus, tmp_path / "whole", tiny_checkpoint, "--num-shards=40", "--num-workers=1", "--batch-tokens=200"
            )
        )
        == 0
    )
    assert files(tmp_path / "memory") == files(tmp_path / "whole")
    assert MemoryStore.open(tmp_path / "memory", verify=True).hash == MemoryStore.open(tmp_path / "whole").hash
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)
    assert not (tmp_path / "memory" / ".spill").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("arguments", [(), ("--near-duplicates=0.9", "--limit=500")], ids=["plain", "surveyed"])
@pytest.mark.parametrize(
    "num_kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.release)]
)
def test_killed_at_random_points_it_ends_in_the_same_dataset(
    tiny_checkpoint: Path, tmp_path: Path, num_kills: int, arguments: tuple[str, ...]
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 600)
    given = ("--num-shards=20", "--num-workers=1", "--batch-tokens=400", *arguments)

    def begin(output: Path) -> ForkServerProcess:
        return warm.start(main, command(corpus, output, tiny_checkpoint, *given))

    begin(tmp_path / "first").join()  # the server's own start is none of the job's time
    before = time.monotonic()
    begin(tmp_path / "whole").join()
    duration = time.monotonic() - before
    whole = MemoryStore.open(tmp_path / "whole", verify=True)
    rng, number, kills = random.Random(0), 0, 0
    while kills < num_kills:
        output = tmp_path / f"killed-{number}"
        process = begin(output)
        process.join(rng.uniform(0.1, 1.0) * duration)
        warm.kill(process)
        interrupted = not (output / "manifest.json").exists()
        kills += interrupted  # one that came after the end is none
        if rng.random() < 0.3 or not interrupted or kills == num_kills:
            process = begin(output)
            process.join()
            assert process.exitcode == 0
            assert files(output) == files(tmp_path / "whole")
            assert MemoryStore.open(output, verify=True).hash == whole.hash
            assert [path.name for path in output.glob(".*")] == [".lock"]
            number += 1
