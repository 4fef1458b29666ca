"""A MEMORY compressed in int8: near the exact one, apart from it by its fingerprint, read but not trained with."""

from pathlib import Path

import numpy as np
import pytest

from clara.config.load import load
from clara.errors import InputError
from clara.memory.fingerprint import check, of_memory
from clara.memory.store import MemoryStore
from clara.retrieval.retriever import Retriever
from clara.storage.artefact import Artefact
from pipelines.build_memory.command import main
from tests.helpers.memory_command import Build, shard_bytes
from tests.helpers.tiny import documents, write_corpus


@pytest.fixture
def exact(build: Build, corpus_file: Path) -> Path:
    return build(corpus_file, output="exact")


@pytest.fixture
def rounded(build: Build, corpus_file: Path) -> Path:
    return build(corpus_file, "--dtype=int8", output="rounded")


def test_it_is_near_the_exact_one_and_is_made_again_bit_for_bit(
    build: Build, corpus_file: Path, exact: Path, rounded: Path
) -> None:
    one, other = (MemoryStore.open(memory) for memory in (exact, rounded))
    a, b = (store.memory(one.row_ids).reshape(len(one), -1) for store in (one, other))
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert 0.99 < cosines.min() < 0.999999
    assert shard_bytes(build(corpus_file, "--dtype=int8", output="again")) == shard_bytes(rounded)


def test_the_two_never_mix(exact: Path, rounded: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    one, other = (of_memory(Artefact.open(memory, "MEMORY")) for memory in (exact, rounded))
    assert other.dtype == "int8"
    assert {name: value for name, value in other.as_dict().items() if name != "dtype"} == {
        name: value for name, value in one.as_dict().items() if name != "dtype"
    }
    for expected, found, message in (
        (one, other, r"made in dtype int8, this reader computes in float32: .*'int8'; build it again with --dtype flo"),
        (other, one, r"made in dtype float32, this reader computes in int8: "),
    ):
        with pytest.raises(InputError, match=message):
            check([expected], found)
    given = ["--input", str(write_corpus(tmp_path / "c.jsonl")), "--checkpoint", str(tiny_checkpoint)]
    given += ["--output", str(tmp_path / "new"), "--num-workers=1", "--update"]
    with pytest.raises(InputError, match=r"--dtype float32: .* has int8, which its new version keeps"):
        main([*given, str(rounded), "--dtype=float32"])
    with pytest.raises(InputError, match=r"--dtype int8: .* has float32, which its new version keeps"):
        main([*given, str(exact), "--dtype=int8"])
    assert main([*given, str(rounded)]) == 0
    assert of_memory(Artefact.open(tmp_path / "new", "MEMORY")) == other


def test_a_question_of_it_is_asked_in_float32(exact: Path, rounded: Path, tiny_checkpoint: Path) -> None:
    one, other = (Retriever.open(tiny_checkpoint, memory) for memory in (exact, rounded))
    question = [f"Who is mayor of {documents()[3]['title']}?"]
    assert (one.queries(question) == other.queries(question)).all()
    assert one.model.backbone.type_of_passes("compressor") == "float32"


def test_training_and_a_gpu_refuse_it_in_one_line(build: Build, corpus_file: Path) -> None:
    with pytest.raises(InputError, match=r"backbone\.dtype is 'int8': .*'float32' or 'bfloat16'") as refused:
        load("", ["backbone.dtype=int8"])
    assert "\n" not in str(refused.value)
    for run in ([], ["--dry-run"]):
        with pytest.raises(InputError, match="--dtype int8 with --device cuda: int8 is computed on a CPU only"):
            build(corpus_file, "--dtype=int8", "--device=cuda", *run)


def test_without_a_type_it_is_that_of_the_lm(corpus_file: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    given = ["--input", str(corpus_file), "--checkpoint", str(tiny_checkpoint), "--num-workers=1"]
    for dtype in ("float32", "bfloat16"):
        assert main([*given, "--output", str(tmp_path / dtype), "--set", f"backbone.dtype={dtype}"]) == 0
        assert of_memory(Artefact.open(tmp_path / dtype, "MEMORY")).dtype == dtype
