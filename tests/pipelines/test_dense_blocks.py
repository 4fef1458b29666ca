"""Dense vectors computed by a Beam runner: the bytes of one process, faults, refusals."""

from pathlib import Path

import numpy as np
import pytest

import clara.index.endpoint_encoder
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.dense import NAME, BlockWorkers
from clara.index.embedding import DenseEncoder
from clara.index.endpoint_encoder import EndpointEncoder
from clara.storage.artefact import Artefact
from pipelines.build_index import main
from tests.helpers import embedding_model
from tests.helpers.embedding_endpoint import EmbeddingEndpoint
from tests.helpers.texts import texts_of, write_texts

RUNNER = "--runner=BundleBasedDirectRunner"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "memory", texts_of(60))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(embedding_model.write(tmp_path_factory.mktemp("dense") / "model"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DenseEncoder, "block_rows", 16)
    monkeypatch.setattr(EndpointEncoder, "block_rows", 16)
    monkeypatch.setattr(clara.index.endpoint_encoder, "_RETRY_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def build(memory: Path, output: Path, model: str, *more: str) -> bytes:
    given = [f"--memory={memory}", f"--output={output}", "--queries=0", "--quiet", f"--dense-model={model}"]
    assert main([*given, *more]) == 0
    return Artefact.open(output, "INDEX").file(f"{NAME}/vectors.npy").read_bytes()


def test_a_runner_writes_the_bytes_of_one_process(tmp_path: Path, memory: Path, model: str) -> None:
    here = build(memory, tmp_path / "here", model)
    assert build(memory, tmp_path / "there", model, RUNNER) == here
    assert not (tmp_path / "there" / ".build").exists()
    more = write_texts(tmp_path / "more", [*texts_of(60), ("New", "word1")])
    parent = f"--parent={tmp_path / 'here'}"
    assert build(more, tmp_path / "1", model, parent) == build(more, tmp_path / "2", model, parent, RUNNER)


def test_after_a_fault_only_the_missing_blocks_are_paid(tmp_path: Path, memory: Path) -> None:
    with EmbeddingEndpoint().running() as endpoint:
        endpoint.fails = lambda sent, number: "400" if number > 3 else ""
        with pytest.raises(InputError, match=r"row -?\d+ to row .* refuses with status 400") as caught:
            build(memory, tmp_path / "index", endpoint.url, "--dense-name=tiny", RUNNER)
        assert "while running" not in str(caught.value)
        endpoint.fails = lambda sent, number: ""
        found = build(memory, tmp_path / "index", endpoint.url, "--dense-name=tiny", RUNNER)
        assert {text for text, times in endpoint.texts.items() if times > 1} == {"size"}
        assert found == build(memory, tmp_path / "here", endpoint.url, "--dense-name=tiny")


def test_blocks_that_do_not_arrive_are_an_error(tmp_path: Path, memory: Path, model: str) -> None:
    workers = BlockWorkers(lambda blocks, numbers: None)
    with pytest.raises(InputError, match="blocks of dense vectors that workers computed are not there; give an --out"):
        build_index(memory, tmp_path / "index", "Flat", num_queries=0, dense=DenseEncoder(model), dense_workers=workers)


def test_blocks_of_another_memory_are_not_taken(tmp_path: Path, memory: Path, model: str) -> None:
    """In a shared folder they are beside each other."""
    asked: list[str] = []

    def note(blocks: str, numbers: object) -> None:
        asked.append(blocks)

    other = write_texts(tmp_path / "other", texts_of(60, seed=4))
    for number, of in enumerate((memory, other, memory)):
        with pytest.raises(InputError, match="not there"):
            build_index(
                of,
                tmp_path / str(number),
                "Flat",
                num_queries=0,
                dense=DenseEncoder(model),
                dense_workers=BlockWorkers(note, str(tmp_path / "blocks")),
            )
    assert asked[0] == asked[2] != asked[1]
    assert all(np.char.startswith(asked, str(tmp_path / "blocks")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((RUNNER,), "it computes dense vectors, and --dense-model is empty"),
        (("--no-such-argument=3",), "neither this job nor Beam knows such an argument"),
        (("--dense-model=MODEL", "--no-such-argument=3", RUNNER), "neither this job nor Beam knows such an argument"),
        (("--dense-model=MODEL", "--runner=Nope"), "--runner Nope: Beam makes no pipeline for it"),
    ],
)
def test_what_no_runner_can_do_is_refused(
    tmp_path: Path, memory: Path, model: str, more: tuple[str, ...], message: str
) -> None:
    given = [argument.replace("MODEL", model) for argument in more]
    with pytest.raises(InputError, match=message):
        main([f"--memory={memory}", f"--output={tmp_path / 'index'}", "--queries=0", "--quiet", *given])
