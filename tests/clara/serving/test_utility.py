"""What a passage is worth to an answer, over HTTP: as the model's likelihoods say."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clara.system import System
from tests.helpers.http_service import client_of

QUESTION, ANSWER = "What does the market of Jorvik on the Wend sell?", "iron"


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[TestClient]:
    with client_of(system, max_answer_tokens=20) as found:
        yield found


@pytest.fixture(scope="module")
def rows(system: System) -> list[str]:
    return [str(passage.row_id) for passage in system.search([QUESTION], k=4)[0]]


def body(rows: list[str], without: str, **fields: Any) -> dict[str, Any]:
    return {"question": QUESTION, "answer": ANSWER, "passages": rows, "without": without, **fields}


def measured(client: TestClient, rows: list[str], without: str) -> dict[str, float]:
    reply = client.post("/v1/utility", json=body(rows, without))
    assert reply.status_code == 200, reply.text
    found: dict[str, float] = reply.json()
    return found


def test_it_is_the_likelihood_with_the_passage_minus_that_without_it(
    client: TestClient, system: System, rows: list[str]
) -> None:
    def nats(kept: list[str]) -> float:
        memories = system.retriever.memories([int(row) for row in kept])
        (found,), (count,) = system.retriever.model.answer_log_likelihood([QUESTION], [memories], [ANSWER])
        assert count > 1
        return float(found)

    for place, row in enumerate(rows):
        found = measured(client, rows, row)
        others = rows[:place] + rows[place + 1 :]
        assert (found["given"], found["without"]) == pytest.approx((nats(rows), nats(others)), abs=1e-3)
        assert found["utility"] == found["given"] - found["without"] != 0


def test_leaving_out_one_after_another_sums_to_all_against_none(
    client: TestClient, system: System, rows: list[str]
) -> None:
    steps = [measured(client, rows[place:], rows[place]) for place in range(len(rows))]
    nothing = system.retriever.memories([])
    none, _ = system.retriever.model.answer_log_likelihood([QUESTION], [nothing], [ANSWER])
    assert sum(step["utility"] for step in steps) == pytest.approx(steps[0]["given"] - float(none), abs=1e-3)


def test_it_is_measured_beside_answers(client: TestClient, rows: list[str]) -> None:
    asked = {"question": QUESTION, "passages": 4, "max_tokens": 20}
    alone, answer = measured(client, rows, rows[0]), client.post("/v1/answers", json=asked).json()["text"]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client.post, "/v1/answers", json=asked) for _ in range(4)]
        utilities = [pool.submit(measured, client, rows, rows[0]) for _ in range(4)]
        assert [reply.result().json()["text"] for reply in answers] == [answer] * 4
        assert [found.result() for found in utilities] == [alone] * 4


BAD: list[tuple[dict[str, Any], str]] = [
    ({"without": "7"}, "the one to leave out among them"),
    ({"passages": ["7", "7"], "without": "7"}, "each passage once"),
    ({"passages": ["7"], "without": "7"}, "row_id 7 is not a live row"),
    ({"passages": [], "without": "7"}, "passages: List should have at least 1 item"),
    ({"passages": ["9" * 19], "without": "9" * 19}, "the row_id of a passage"),
    ({"passages": ["-1"], "without": "-1"}, "the row_id of a passage"),
    ({"passages": ["²"], "without": "²"}, "the row_id of a passage"),
    ({"answer": " "}, "^answer: expected some text"),
    ({"answer": "iron " * 40}, r"the answer has \d+ tokens; expected 20 at most"),
    ({"answer": "a" * 16_001}, "serving.max_context_characters"),
    ({"question": "a" * 4001}, "serving.max_question_characters"),
    ({"other": 1}, "other: Extra inputs"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_input_is_refused(client: TestClient, rows: list[str], fields: dict[str, Any], message: str) -> None:
    reply = client.post("/v1/utility", json=body(rows, rows[0]) | fields)
    assert reply.status_code == 422
    with pytest.raises(ValueError, match=message):
        raise ValueError(reply.json()["error"]["message"])


def test_what_does_not_fit_the_language_model_is_refused(system: System, rows: list[str]) -> None:
    with client_of(system, max_answer_tokens=100_000) as client:
        reply = client.post("/v1/utility", json=body(rows, rows[0], answer="iron " * 3000))
        assert (reply.status_code, "the language model takes 2048 together" in reply.text) == (422, True)
        assert measured(client, rows, rows[0])


def test_a_fault_of_ours_is_500_and_the_next_request_is_answered(
    system: System, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(system) as client:
        with monkeypatch.context() as patch:
            patch.setattr(system.retriever.model, "answer_losses", lambda *_: 1 / 0)
            assert client.post("/v1/utility", json=body(rows, rows[0])).status_code == 500
        assert measured(client, rows, rows[0])
