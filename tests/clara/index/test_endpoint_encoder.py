"""Dense vectors of an embeddings endpoint: against brute force, paid once, and every way in which it can fail."""

import base64
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clara.index.endpoint_encoder
from clara.config.model import Fusion
from clara.config.tree import Retrieval
from clara.data.records import input_text
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.dense import NAME, open_dense
from clara.index.dense_model import model_hash, open_encoder
from clara.index.endpoint_encoder import EndpointEncoder
from clara.index.search import KIND
from clara.memory.store import MemoryStore
from clara.retrieval.dense import DenseRanker
from clara.retrieval.pools import SourceInputs, feature_rankers
from clara.retrieval.ranker import Queries
from clara.storage.artefact import Artefact
from clara.storage.manifest import read_manifest
from pipelines.build_index import main
from tests.helpers import embedding_model
from tests.helpers.embedding_endpoint import SIZE, EmbeddingEndpoint, unit_vectors
from tests.helpers.texts import texts_of, write_texts

ROWS, KEY = 100, "sk-secret"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clara.index.endpoint_encoder, "_RETRY_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def endpoint() -> Iterator[EmbeddingEndpoint]:
    with EmbeddingEndpoint(slow_seconds=1.0).running() as running:
        yield running


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "memory", texts_of(ROWS))


def settings(endpoint: EmbeddingEndpoint, **changed: Any) -> Retrieval:
    return Retrieval(**{"dense_model": endpoint.url, "dense_name": "tiny", "dense_seconds": 5.0} | changed)


def build(memory: Path, output: Path, asked: Retrieval, **options: Any) -> Path:
    build_index(memory, output, "Flat", num_queries=0, dense=open_encoder(asked), **options)
    return output


def texts(memory: Path, prompt: str = "") -> list[str]:
    store = MemoryStore.open(memory)
    return [prompt + input_text(chunk.title, chunk.text) for chunk in store.records(store.row_ids)]


def vectors(index: Path) -> Any:
    return np.load(index / NAME / "vectors.npy")


def test_the_index_and_its_ranking_are_those_of_brute_force(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint
) -> None:
    flags = ["--dense-name=tiny", "--dense-question-prompt=query: ", "--dense-text-prompt=passage: "]
    places = [f"--memory={memory}", f"--output={tmp_path / 'index'}", "--queries=0", "--quiet"]
    assert main([*places, f"--dense-model={endpoint.url}", *flags, "--set", "retrieval.dense_concurrency=3"]) == 0
    expected = unit_vectors(texts(memory, "passage: "))
    np.testing.assert_allclose(vectors(tmp_path / "index"), expected, atol=1e-3)
    asked = settings(endpoint, dense_question_prompt="query: ", dense_text_prompt="passage: ")
    described = read_manifest(tmp_path / "index", KIND)["dense"]
    described.pop("row_ids")
    assert described == {
        "model": model_hash(asked),
        "prompts": {"query": "query: ", "document": "passage: "},
        "default_prompt": "",
        "similarity": "cosine",
        "size": SIZE,
    }
    store = MemoryStore.open(memory)
    ranker = DenseRanker.open(Artefact.open(tmp_path / "index", KIND), store, open_encoder(asked))
    similarities = unit_vectors(["query: why", "query: how"]) @ expected.T
    queries = Queries(["why", "how"], [(), ()])
    rows = store.row_ids.tolist()
    np.testing.assert_allclose(ranker.score(queries, [rows, rows]), similarities, atol=2e-3)
    found = ranker.rank(queries, 10)
    by_score = np.argsort(-(unit_vectors(["query: why", "query: how"]) @ vectors(tmp_path / "index").T), kind="stable")
    assert found == store.row_ids[by_score[:, :10]].tolist()
    assert set(endpoint.texts.values()) == {1}  # of rows, and of questions that are asked again
    assert all(body["model"] == "tiny" and "dimensions" not in body for body in endpoint.requests)


def test_an_interrupted_build_pays_only_for_what_is_missing(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndpointEncoder, "block_rows", 16)
    last = texts(memory)[-1]
    endpoint.fails = lambda sent, number: "400" if last in sent else ""
    asked = settings(endpoint)
    with pytest.raises(InputError, match="refuses with status 400"):
        build(memory, tmp_path / "index", asked)
    finished = dict(endpoint.texts)
    assert len(finished) > 16
    endpoint.fails = lambda sent, number: ""
    build(memory, tmp_path / "index", asked)
    np.testing.assert_allclose(vectors(tmp_path / "index"), unit_vectors(texts(memory)), atol=1e-3)
    assert {text for text, times in endpoint.texts.items() if times > 1} == {"size"}  # one word asks for the size
    assert {*finished} <= {*texts(memory), "size"}


def test_the_size_that_is_asked_for_is_sent_and_checked(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint
) -> None:
    index = build(memory, tmp_path / "index", settings(endpoint, dense_size=4))
    np.testing.assert_allclose(vectors(index), unit_vectors(texts(memory), 4), atol=1e-3)
    assert set(endpoint.texts.values()) == {1}
    assert "size" not in endpoint.texts
    endpoint.edit = lambda items: [item | {"embedding": item["embedding"] * 2} for item in items]
    with pytest.raises(InputError, match=r"row -?\d+: .* returned a vector of 8 numbers, expected 4"):
        build(memory, tmp_path / "other", settings(endpoint, dense_size=4))


def changed(place: int, embedding: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """Another embedding of one text in requests of many."""

    def edit(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(items) < 2:
            return items
        return [item | {"embedding": embedding} if item["index"] == place else item for item in items]

    return edit


ROW = r"row -?\d+: the endpoint "


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda items: items[1:] if len(items) > 1 else items, r"row -?\d+ to row -?\d+ \(\d+ texts\): .* vectors"),
        (lambda items: [items[0], *items[:-1]] if len(items) > 1 else items, r"returned \d+ vectors \(index \["),
        (changed(1, [1.0] * 5), ROW + "returned a vector of 5 numbers, expected 8 as for other texts"),
        (changed(0, [0.0, float("nan"), *[1.0] * 6]), ROW + "returned nan as number 1 of its vector"),
        (changed(0, [1e300] * 8), ROW + r"returned 1e\+300 as number 0"),
        (changed(0, ["1.0"] * 8), ROW + "returned .* expected a list of numbers"),
        (changed(0, [None] * 8), ROW + "returned .* expected a list of numbers"),
        (changed(0, [True] * 8), ROW + "returned .* expected a list of numbers"),
        (changed(0, [[1.0], [1.0, 2.0]]), ROW + "returned .* expected a list of numbers"),
        (changed(0, []), ROW + r"returned '\[\]', expected a list of numbers"),
        (changed(0, "AACAPwAAgD8="), ROW + "returned a vector of 2 numbers, expected 8"),  # base64
        (changed(0, "0.5,1.0"), ROW + "returned .* expected a list of numbers"),
        (changed(0, "AACAPwA="), ROW + "returned .* expected a list of numbers"),
        (lambda items: {"choices": []}, "a text that asks for the size: .* returned no vectors but"),
        (lambda items: [{"index": 0}], "returned no vectors but"),
        (lambda items: [item | {"index": float("inf")} for item in items], "returned no vectors but"),
        (lambda items: [], r"returned 0 vectors \(index \[\]\) for 1 texts"),
    ],
)
def test_answers_that_are_no_vectors_of_the_texts_are_refused(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint, edit: Any, message: str
) -> None:
    endpoint.edit = edit
    with pytest.raises(InputError, match=message) as caught:
        build(memory, tmp_path / "index", settings(endpoint))
    assert "run the same command again" in str(caught.value)


def test_vectors_in_base64_and_without_an_index_are_read(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint
) -> None:
    def packed(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ordered = sorted(items, key=lambda item: item["index"])
        return [{"embedding": base64.b64encode(np.array(i["embedding"], "<f4").tobytes()).decode()} for i in ordered]

    endpoint.edit = packed
    build(memory, tmp_path / "index", settings(endpoint))
    np.testing.assert_allclose(vectors(tmp_path / "index"), unit_vectors(texts(memory)), atol=1e-3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "failed 5 times, the last time with: status 500"),
        ("429", "failed 5 times, the last time with: status 429"),
        ("slow", r"failed 5 times, .* no answer within 0\.2 s; .* retrieval\.dense_seconds"),
        ("cut", "failed 5 times, the last time with: no JSON"),
        ("closed", "failed 5 times, the last time with: no connection"),
        ("404", "refuses with status 404: .* check the URL, --dense-name"),
        ("400", "refuses with status 400"),
    ],
)
def test_an_endpoint_that_fails_for_good_is_reported_and_one_that_recovers_is_asked_again(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint, fault: str, message: str
) -> None:
    asked = settings(endpoint, dense_seconds=0.2)
    endpoint.fails = lambda sent, number: fault
    with pytest.raises(InputError, match=message):
        build(memory, tmp_path / "index", asked)
    if "failed 5 times" in message:
        assert len(endpoint.requests) == 5
        endpoint.fails = lambda sent, number: fault if number % 3 else ""
        endpoint.requests.clear()
        build(memory, tmp_path / "index", settings(endpoint, dense_seconds=0.2, dense_concurrency=1))
        np.testing.assert_allclose(vectors(tmp_path / "index"), unit_vectors(texts(memory)), atol=1e-3)


def test_an_endpoint_that_is_not_there_is_reported() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(InputError, match=r"question 'why': the endpoint failed 5 times, .* no connection"):
        open_encoder(Retrieval(dense_model=url, dense_name="tiny")).embed_questions(["why"])


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.key = KEY
    with pytest.raises(InputError, match=r"refuses with status 401.* environment variable MY_KEY"):
        build(memory, tmp_path / "index", settings(endpoint, dense_key_variable="MY_KEY"))
    monkeypatch.setenv("MY_KEY", KEY)
    index = build(memory, tmp_path / "index", settings(endpoint, dense_key_variable="MY_KEY"))
    assert not [path for path in index.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    endpoint.fails = lambda sent, number: "400"
    with pytest.raises(InputError, match=r"refuses with status 400: .*with key") as caught:
        open_encoder(settings(endpoint, dense_key_variable="MY_KEY")).embed_questions(["why"])
    assert KEY not in str(caught.value)


def test_the_hash_is_of_name_prompts_and_size_and_another_one_is_refused(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint
) -> None:
    asked = settings(endpoint)
    differing = [
        settings(endpoint, **{name: value})
        for name, value in (
            ("dense_name", "other"),
            ("dense_question_prompt", "query: "),
            ("dense_text_prompt", "query: "),
            ("dense_size", 4),
        )
    ]
    assert len({model_hash(s) for s in (asked, *differing)}) == 5
    moved = asked.model_copy(update={"dense_model": "https://elsewhere/v1", "dense_seconds": 1.0})
    assert model_hash(moved) == model_hash(asked)
    artefact = Artefact.open(build(memory, tmp_path / "index", asked), KIND)
    assert open_dense(artefact, open_encoder(moved)).shape == (ROWS, SIZE)
    for other in differing:
        with pytest.raises(InputError, match=r"its hash is .* are of model .* name, prompts and size"):
            open_dense(artefact, open_encoder(other))
    store, encoder = MemoryStore.open(memory), open_encoder(differing[0])
    with pytest.raises(InputError, match="are read from an INDEX, so that each is paid once"):
        DenseRanker.of_index_or_memory(artefact, store, encoder)


def test_a_fused_score_takes_the_model_that_its_weight_is_for(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint
) -> None:
    asked, store = settings(endpoint), MemoryStore.open(memory)
    artefact = Artefact.open(build(memory, tmp_path / "index", asked), KIND)
    fusion = Fusion(weights={"memory": 1.0, "dense": 2.0}, dense_model=model_hash(asked))
    ranker = feature_rankers(fusion, SourceInputs(store, artefact, asked))["dense"]
    rows = store.row_ids.tolist()
    expected = unit_vectors(["why"]) @ unit_vectors(texts(memory)).T
    np.testing.assert_allclose(ranker.score(Queries(["why"], [()]), [rows]), expected, atol=2e-3)
    other = settings(endpoint, dense_name="other")
    with pytest.raises(InputError, match="give that model, or fit the score again"):
        feature_rankers(fusion, SourceInputs(store, artefact, other))


def test_another_size_under_the_same_name_is_refused(
    tmp_path: Path, memory: Path, endpoint: EmbeddingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndpointEncoder, "block_rows", 16)
    asked = settings(endpoint)
    whole = build(memory, tmp_path / "whole", asked)
    endpoint.requests.clear()
    endpoint.fails = lambda sent, number: "400" if number > 4 else ""
    with pytest.raises(InputError, match="status 400"):
        build(memory, tmp_path / "index", asked)
    endpoint.fails, endpoint.size = lambda sent, number: "", 6
    with pytest.raises(InputError, match=r"gives vectors of 6 numbers, those of .*\.npy have 8; it is another model"):
        build(memory, tmp_path / "index", asked)
    changed_memory = write_texts(tmp_path / "memory", [*texts_of(ROWS), ("New", "word1")])
    with pytest.raises(InputError, match=r"gives vectors of 6 numbers, those of .*whole have 8"):
        build(changed_memory, tmp_path / "new", asked, parent=str(whole))
    ranker = DenseRanker.open(Artefact.open(whole, KIND), MemoryStore.open(memory), open_encoder(asked))
    with pytest.raises(InputError, match="gives vectors of 6 numbers, those of the rows have 8"):
        ranker.rank(Queries(["why"], [()]), 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dense_model": "http://localhost:1/v1"}, "retrieval.dense_name is empty; name .* with --dense-name"),
        ({"dense_model": "http://me:pw@host/v1", "dense_name": "a"}, "holds a user, password or query"),
        ({"dense_model": "http://", "dense_name": "a"}, "--dense-model: not the URL of an endpoint"),
        ({"dense_model": "folder", "dense_name": "a"}, "dense_name = 'a' is for an endpoint, and .* 'folder'"),
        ({"dense_model": "folder", "dense_size": 3}, "retrieval.dense_size = 3 is for an endpoint"),
        ({"dense_text_prompt": "a: "}, "dense_text_prompt = 'a: ' is for an endpoint, and .* 'empty'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, memory: Path, asked: dict[str, Any], message: str
) -> None:
    sets = [part for name, value in asked.items() for part in ("--set", f"retrieval.{name}={json.dumps(value)}")]
    with pytest.raises(InputError, match=message):
        main([f"--memory={memory}", f"--output={tmp_path / 'index'}", *sets])


def test_the_extra_is_named_where_the_package_is_missing(
    endpoint: EmbeddingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"openai: not installed, .* pip install 'clara-rag\[endpoint\]'"):
        open_encoder(settings(endpoint)).embed_questions(["why"])


def test_a_folder_is_still_a_folder(tmp_path: Path) -> None:
    folder = str(embedding_model.write(tmp_path / "model"))
    encoder = open_encoder(Retrieval(dense_model=folder))
    assert (encoder.folder, encoder.hash) == (folder, model_hash(Retrieval(dense_model=folder)))
