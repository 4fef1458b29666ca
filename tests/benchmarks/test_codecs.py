"""The codec benchmark: re-stored rows are the same rows, figures are those of an evaluation of each codec."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clara.data.questions import read_questions
from clara.memory.codec import CODECS
from clara.memory.store import MemoryStore
from tests.helpers import evaluation_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.release
def test_every_codec_is_measured_beside_float16(tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path) -> None:
    world = evaluation_world.make(tmp_path / "world", tiny_checkpoint, corpus_file)
    command = [
        sys.executable,
        "-m",
        "benchmarks.codecs",
        "--system",
        f"small={world.trained},{world.memory}",
        "--questions",
        str(world.questions),
        "--splits",
        "unseen",
        "--generate",
        "2",
        "--work",
        str(tmp_path / "work"),
        "--output",
        str(tmp_path / "results"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=280)
    found = {m["codec"]: m for m in json.loads((tmp_path / "results" / "results.json").read_text())["measured"]}
    assert list(found) == list(CODECS)
    exact = MemoryStore.open(world.memory)
    for codec, least in (("int8", 0.999), ("int4", 0.98), ("pq4", 0.5), ("pq8", 0.3)):
        other = MemoryStore.open(tmp_path / "work" / "small" / codec)
        assert other.codec == codec
        assert np.array_equal(other.row_ids, exact.row_ids)
        assert np.array_equal(other.keys(), exact.keys())
        assert [c.text for c in other.records(other.row_ids)] == [c.text for c in exact.records(exact.row_ids)]
        assert least < found[codec]["cosine"] < 1
        assert found[codec]["num_bytes"] < found["float16"]["num_bytes"]
    assert found["float16"]["num_bytes"] == exact.memory(exact.row_ids[:1]).size * 2
    assert found["float16"]["against"] == {}
    count = len(read_questions(world.questions, "unseen"))
    for codec, of in found.items():
        assert of["figures"]["right.log_likelihood"]["num_questions"] == count
        if codec != "float16":
            gap = (
                of["figures"]["right.log_likelihood"]["value"]
                - found["float16"]["figures"]["right.log_likelihood"]["value"]
            )
            assert of["against"]["right.log_likelihood"]["difference"] == pytest.approx(gap, abs=1e-6)
    assert (tmp_path / "results" / "codecs.png").read_bytes().startswith(b"\x89PNG")
