"""The service answers as Python does, to many at once, and refuses what it cannot answer with a documented status."""

import io
import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clara.errors import UnavailableError
from clara.serving.logs import LogHandler
from clara.serving.metrics import Metrics
from clara.system import System
from tests.helpers.http_service import client_of, events_of, figure

QUESTIONS = ["Who is the mayor of Arlen on the Tamo?", "What does the market of Jorvik sell?", "When was it built?"]


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[TestClient]:
    with client_of(system, max_running=3, max_body_bytes=20_000) as found:
        yield found


# --- answers ---


def test_an_answer_is_that_of_python(client: TestClient, system: System) -> None:
    expected = system.ask(QUESTIONS[0], passages=3, max_new_tokens=9)
    reply = client.post("/v1/answers", json={"question": QUESTIONS[0], "passages": 3, "max_tokens": 9})
    assert reply.status_code == 200
    found = reply.json()
    assert (found["question"], found["text"]) == (QUESTIONS[0], expected.text)
    assert expected.text
    for passage, own in zip(found["passages"], expected.passages, strict=True):
        assert (passage["document_id"], passage["title"], passage["text"]) == (own.document_id, own.title, own.text)
        assert passage["row_id"] == str(own.row_id)
        assert passage["score"] == pytest.approx(own.score, abs=1e-6)
        assert passage["why"] == pytest.approx(dict(own.why), abs=1e-4)
    assert len(client.post("/v1/answers", json={"question": QUESTIONS[0]}).json()["passages"]) == 5


def test_a_question_too_long_to_be_searched_for_as_a_whole_says_so(client: TestClient, system: System) -> None:
    asked = {"question": "Who? " * 300, "max_tokens": 1}
    unread = system.ask(asked["question"], max_new_tokens=1).unread  # type: ignore[call-overload]
    assert client.post("/v1/answers", json=asked).json()["unread"] == unread != ""


def test_a_stream_has_passages_pieces_and_the_answer(client: TestClient, system: System) -> None:
    expected = system.ask(QUESTIONS[1], passages=2, max_new_tokens=20)
    asked = {"question": QUESTIONS[1], "passages": 2, "max_tokens": 20, "stream": True}
    reply = client.post("/v1/answers", json=asked)
    assert reply.headers["content-type"].startswith("text/event-stream")
    (first, found), *pieces, (last, answer) = events_of(reply.text)
    assert (first, last) == ("passages", "answer")
    assert found["passages"] == answer["passages"]
    assert {name for name, _ in pieces} == {"piece"}
    assert "".join(data["text"] for _, data in pieces) == answer["text"] == expected.text
    assert len(pieces) > 3


def test_a_search_is_that_of_python(client: TestClient, system: System) -> None:
    reply = client.post("/v1/search", json={"questions": QUESTIONS, "k": 4})
    expected = system.search(QUESTIONS, k=4)
    assert [[p["row_id"] for p in own] for own in reply.json()["results"]] == [
        [str(p.row_id) for p in own] for own in expected
    ]


def test_a_filter_is_that_of_python(client: TestClient, system: System) -> None:
    names = ["doc-07", "doc-31"]
    reply = client.post("/v1/search", json={"questions": QUESTIONS, "k": 3, "documents": names})
    expected = system.only(documents=names).search(QUESTIONS, k=3)
    assert [[p["row_id"] for p in own] for own in reply.json()["results"]] == [
        [str(p.row_id) for p in own] for own in expected
    ]
    answer = client.post("/v1/answers", json={"question": QUESTIONS[0], "documents": ["doc-07"]}).json()
    assert [p["document_id"] for p in answer["passages"]] == ["doc-07"] * 2
    with client_of(system, max_filtered_rows=3) as small:
        refused = small.post("/v1/search", json={"questions": QUESTIONS, "k": 3, "documents": names})
        assert (refused.status_code, "4 rows pass" in refused.text) == (422, True)


def test_many_at_once_are_answered_as_one_by_one(client: TestClient, system: System) -> None:
    asked = [
        {"question": f"{QUESTIONS[n % 3]} {n}", "passages": 1 + n % 4, "max_tokens": 3 + 5 * (n % 5)} for n in range(18)
    ]
    expected = [
        system.ask(a["question"], passages=a["passages"], max_new_tokens=a["max_tokens"]).text  # type: ignore[call-overload]
        for a in asked
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda body: client.post("/v1/answers", json=body), asked))
    assert [reply.status_code for reply in replies] == [200] * len(asked)
    assert [reply.json()["text"] for reply in replies] == expected


# --- what is refused ---

_LONG = "a" * 4001
BAD: list[tuple[str, Any, int, str]] = [
    ("/v1/answers", {"question": ""}, 422, "^question: expected some text, in whole characters$"),
    ("/v1/answers", {"question": " \n"}, 422, "question"),
    ("/v1/answers", {"question": _LONG}, 422, r"characters of a question: 4001, and this service takes 4000"),
    ("/v1/answers", {"question": "a" * 100_000}, 413, "max_body_bytes"),
    ("/v1/answers", {}, 422, "question: Field required"),
    ("/v1/answers", {"question": "Who?", "k": 3}, 422, "k: Extra inputs are not permitted"),
    ("/v1/answers", {"question": "Who?", "passages": 0}, 422, "passages: Input should be greater"),
    ("/v1/answers", {"question": "Who?", "passages": 1_000_000}, 422, "passages: 1000000, and this service takes 100"),
    ("/v1/answers", {"question": "Who?", "passages": 81}, 422, "the MEMORY holds 80 rows"),
    ("/v1/answers", {"question": "Who?", "max_tokens": 0}, 422, "max_tokens"),
    ("/v1/answers", {"question": "Who?", "max_tokens": 257}, 422, "tokens of the answer: 257"),
    ("/v1/answers", {"question": "Who?", "max_tokens": 257, "stream": True}, 422, "tokens of the answer: 257"),
    ("/v1/answers", {"question": "Who?", "documents": ["doc-99"]}, 422, "no row of document 'doc-99'"),
    ("/v1/answers", {"question": "Who?", "sources": []}, 422, "sources: List should have at least 1 item"),
    ("/v1/answers", {"question": ["Who?"]}, 422, "question: Input should be a valid string"),
    ("/v1/answers", {"question": "Who?", "passages": "3"}, 422, "passages: Input should be a valid integer"),
    ("/v1/answers", {"question": "Who?", "passages": True}, 422, "passages: Input should be a valid integer"),
    ("/v1/answers", {"question": "Who?", "stream": "yes"}, 422, "stream: Input should be a valid boolean"),
    ("/v1/answers", b'{"question": "Wh', 422, "^body, character 14: JSON decode error; send one complete JSON object"),
    ("/v1/answers", [1], 422, "^body: expected a JSON object; send one, with Content-Type: application/json"),
    ("/v1/answers", b'{"question": "\xff\xfe"}', 400, "parsing the body: it is no JSON in UTF-8"),
    ("/v1/answers", b'{"question": "\\ud800"}', 422, "question"),
    ("/v1/answers", b"", 422, "body"),
    ("/v1/search", {"questions": []}, 422, "questions"),
    ("/v1/search", {"questions": ["Who?"] * 33}, 422, "questions: 33, and this service takes 32"),
    ("/v1/search", {"questions": ["Who?", ""]}, 422, r"questions\.1"),
    ("/v1/search", {"questions": ["Who?"], "k": 0}, 422, "k: Input should be greater"),
    ("/v1/search", {"questions": ["Who?"], "k": 1_000_000}, 422, "passages: 1000000"),
    ("/v1/search", {"questions": ["Who?"], "k": 1e999}, 422, "k"),
    ("/v2", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD)
def test_bad_input_is_refused(client: TestClient, path: str, body: Any, status: int, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in reply.text
    assert len(reply.text) < 1000
    assert re.search(message, error["message"]), error


def test_a_body_without_its_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    reply = client.post("/v1/answers", content=iter([b'{"question": "', *[b"a" * 5000] * 5]))
    assert reply.status_code == 413


def test_documented_statuses_are_all_that_there_are(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/answers", "/v1/search", "/v1/chat/completions", "/v1/models", "/health/ready"}
    for path, _, status, _ in BAD:
        assert path == "/v2" or str(status) in paths[path]["post"]["responses"]
    reference = paths["/v1/answers"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.endswith("/ErrorReply")


def test_a_key_is_asked_for_below_v1(system: System) -> None:
    with client_of(system, key="secret") as client:
        body = {"questions": ["Who?"], "k": 1}
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic secret"},
            {"Authorization": "é"},
        ):
            reply = client.post("/v1/search", json=body, headers={k: v.encode("latin-1") for k, v in headers.items()})
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/v1/models").status_code == 401
        assert client.post("/v1/search", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
        for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_no_other_origin_is_allowed(client: TestClient) -> None:
    reply = client.options("/v1/answers", headers={"Origin": "http://a", "Access-Control-Request-Method": "POST"})
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert not [name for name in reply.headers if name.startswith("access-control")]


# --- looking after it ---


def test_requests_have_ids_lines_and_figures(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, lines = Metrics(), io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [LogHandler(lines, metrics)])
    root.setLevel(logging.INFO)
    with client_of(system, metrics=metrics) as client:
        reply = client.post("/v1/search", json={"questions": ["Who?"], "k": 1}, headers={"X-Request-ID": "abc-1"})
        assert reply.headers["x-request-id"] == "abc-1"
        other = client.get("/nowhere", headers={"X-Request-ID": "two words"}).headers["x-request-id"]
        assert len(other) == 32
        client.post("/v1/answers", json={"question": "Who?", "max_tokens": 3})
        assert client.get("/health/live").json() == {"status": "live"}
        ready = client.get("/health/ready").json()
        assert (ready["status"], ready["rows"]) == ("ready", len(system.retriever.store))
        text = client.get("/metrics").text
        assert 'clara_requests_total{path="/v1/search",status="200"} 1.0' in text
        assert 'clara_requests_total{path="other",status="404"} 1.0' in text
        assert figure(client, "clara_tokens_total") == 3
        assert figure(client, "clara_first_token_seconds_count") == 1
    noted = [json.loads(line) for line in lines.getvalue().splitlines()]
    first = next(line for line in noted if line.get("request_id") == "abc-1")
    assert (first["path"], first["status"], first["method"]) == ("/v1/search", 200, "POST")
    assert first["seconds"] >= 0


class FullDisk(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_for_the_log_stops_nothing(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    monkeypatch.setattr(logging.getLogger(), "handlers", [LogHandler(FullDisk(), metrics)])
    logging.getLogger().setLevel(logging.INFO)
    with client_of(system, metrics=metrics) as client:
        assert client.post("/v1/search", json={"questions": ["Who?"], "k": 1}).status_code == 200
        assert figure(client, "clara_lost_log_lines_total") >= 1


def test_search_servers_that_do_not_answer_are_no_fault_of_the_request(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> Any:
        raise UnavailableError("search: no answer from search-1-of-2 over /data/index")

    with client_of(system) as client:
        monkeypatch.setattr(system.retriever, "hits", lost)
        reply = client.post("/v1/search", json={"questions": ["Who?"], "k": 1})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert "/data" not in reply.text


def test_a_fault_of_ours_is_500_without_a_stack_and_the_next_request_is_answered(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"question": "Who?", "max_tokens": 2}
    with client_of(system) as client:
        with monkeypatch.context() as patch:
            patch.setattr(system.retriever, "hits", lambda *_: 1 / 0)
            for asked in (body, {**body, "stream": True}):
                reply = client.post("/v1/answers", json=asked)
                assert reply.status_code == 500
                assert reply.json()["error"]["type"] == "server_error"
                assert "ZeroDivision" not in reply.text
        with monkeypatch.context() as patch:
            patch.setattr(system.retriever.model, "inputs", lambda *_: 1 / 0)
            assert client.post("/v1/answers", json=body).status_code == 500
            (found, _), (last, error) = events_of(client.post("/v1/answers", json={**body, "stream": True}).text)
            assert (found, last, error["error"]["code"]) == ("passages", "error", "internal_error")
        assert client.post("/v1/answers", json=body).status_code == 200
        assert figure(client, "clara_failures_total") == 4
