"""The page in a browser: asking, streaming, what a passage is worth, errors, keys, nothing wrong for a reader.

`CLARA_PICTURES=docs/pictures pytest -m slow tests/clara/serving/test_browser.py` writes the documentation's picture.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from clara.storage.manifest import manifest_hash
from clara.system import System
from tests.helpers.browser import Visit
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import server_of, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
QUESTION = "What does the market of Jorvik on the Wend sell?"


@pytest.fixture(scope="module")
def url(fused: System) -> Iterator[str]:
    with server_of(fused) as (_, found):
        yield found


def ask(visit: Visit, question: str = QUESTION, **fields: Any) -> None:
    for name, value in fields.items():
        visit.page.locator(f'#ask-form [name="{name}"]').fill(str(value))
    visit.page.locator("#question").fill(question)
    visit.page.locator("#question").press("Enter")


def answered(visit: Visit) -> None:
    visit.page.get_by_text("Answered in").wait_for()


def begun(visit: Visit) -> None:
    visit.page.locator("#answer[aria-busy]").filter(has_text=re.compile(".{20}", re.DOTALL)).wait_for()


def error(visit: Visit) -> str:
    visit.page.locator("#ask-error:not(:empty)").wait_for()
    text = visit.page.locator("#ask-error").inner_text()
    assert len(text) < 250
    assert "\n" not in text
    return text


def pretend(visit: Visit, events: Sequence[tuple[str, Any]]) -> None:
    """Let a stream of these events be the service's next replies."""
    body = "".join(f"event: {name}\ndata: {json.dumps(content)}\n\n" for name, content in events)
    visit.page.route("**/v1/answers", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


@contextmanager
def held(system: System, url: str) -> Iterator[None]:
    """A service whose one place is taken by a search that does not end before this does."""
    release, hits = threading.Event(), system.retriever.hits

    def late(*arguments: Any) -> Any:
        release.wait(60)
        return hits(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.retriever, "hits", late)
        body = {"questions": [QUESTION], "k": 1}
        searching = threading.Thread(target=lambda: httpx.post(f"{url}/v1/search", json=body, timeout=60))
        searching.start()
        wait_for(lambda: "clara_running 1.0" in httpx.get(f"{url}/metrics").text)
        try:
            yield
        finally:
            release.set()
            searching.join()


# --- asking ---


def test_an_answer_with_its_passages_and_their_scores(
    browser: "Browser", url: str, fused: System, tmp_path: Path
) -> None:
    expected = fused.ask(QUESTION, passages=3)
    visit = Visit(browser, url)
    page = visit.page
    assert page.title() == "Ask · CLaRa"
    page.get_by_text("ready · 80 rows in MEMORY", exact=True).wait_for()
    ask(visit, passages=3)
    answered(visit)
    assert page.locator("#answer").inner_text() == expected.text
    items = page.locator("#passages > li")
    assert items.count() == 3
    for place, passage in enumerate(expected.passages):
        item = items.nth(place)
        text = item.inner_text()
        assert passage.title in text
        assert passage.text in text
        assert f"document {passage.document_id} · row {passage.row_id}" in text
        assert item.locator("caption").inner_text() == f"Score {passage.score:,.2f}, in logits"
        cells = item.locator("table.score tbody tr").all_inner_texts()
        parts = {"Memory": passage.why["memory"], "Words (BM25)": passage.why["bm25"]}
        assert [cell.split("\t")[:2] for cell in cells] == [[name, f"{value:,.2f}"] for name, value in parts.items()]
    assert "found by memory, words (bm25)" in items.nth(0).inner_text()
    page.get_by_text("What the parts of a score mean").click()
    page.get_by_text("Words that question and passage share").wait_for()
    visit.check()
    page.get_by_text("What the parts of a score mean").click()
    items.nth(0).get_by_role("button").click()
    said = items.nth(0).get_by_role("status")
    said.get_by_text("Without it the answer is").wait_for()
    assert re.search(
        r"is [\d.,e+]+ times (?:less|more) likely: utility -?[\d.]+ nats over \d+ tokens", said.inner_text()
    )
    visit.check()
    assert visit.picture("page_ask", tmp_path).stat().st_size < 150_000


def test_a_filter_by_documents(browser: "Browser", url: str) -> None:
    visit = Visit(browser, url)
    ask(visit, documents="doc-07, doc-31", passages=3)
    answered(visit)
    notes = visit.page.locator("#passages .note").all_inner_texts()
    assert all(re.match(r"document doc-(07|31) ", note) and "the filter lets it pass" in note for note in notes)
    visit.check()


def test_the_keyboard_reaches_everything_in_order(browser: "Browser", url: str) -> None:
    visit = Visit(browser, url)
    page, seen = visit.page, []
    assert page.evaluate("document.activeElement.id") == "question"
    for _ in range(5):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.name || document.activeElement.textContent"))
    assert seen[:4] == ["passages", "max_tokens", "documents", "Ask"]
    link = page.get_by_role("link", name="API", exact=True)
    link.focus()
    page.keyboard.press("Enter")
    page.get_by_text("GET /health/ready").wait_for()
    assert page.evaluate("document.activeElement.id") == "api-title"
    assert link.get_attribute("aria-current") == "page"
    visit.check()


def test_text_of_a_service_is_shown_as_text(browser: "Browser", url: str) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    passage = {"document_id": evil, "row_id": "1", "title": evil, "text": evil, "score": 1, "sources": [evil]}
    passages = [{**passage, "why": {evil: 1.0}}]
    answer = {"question": evil, "text": evil, "passages": passages, "unread": evil}
    events = [("passages", {"passages": passages}), ("piece", {"text": evil}), ("answer", answer)]
    visit = Visit(browser, url)
    pretend(visit, events)
    ask(visit)
    answered(visit)
    assert visit.page.locator("#answer").inner_text() == evil
    assert visit.page.locator("#ask img, #ask script").count() == 0
    assert visit.wrong == []


# --- looking into it ---


def test_memory_is_paged_and_searched(browser: "Browser", url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    page.get_by_role("link", name="Memory").click()
    page.get_by_text("1–20 of 40").wait_for()
    page.get_by_role("button", name="Later").click()
    page.get_by_text("21–40 of 40").wait_for()
    assert page.locator("#documents tbody tr").count() == 20
    page.get_by_label("Part of an id or title").fill("jorvik on the w")
    page.get_by_label("Part of an id or title").press("Enter")
    page.get_by_role("button", name="doc-39").click()
    page.get_by_text("Chunks of doc-39").wait_for()
    assert page.locator("#chunks tbody tr").count() == 2
    assert "Jorvik on the Wend is a town of" in page.locator("#chunks").inner_text()
    assert page.locator("#dead-letters").inner_text() == "None."
    visit.check()


def test_lineage_names_what_made_each_part(browser: "Browser", url: str, evaluation_artefacts: World) -> None:
    visit = Visit(browser, url, path="/#lineage")
    page = visit.page
    page.get_by_role("heading", name="INDEX").wait_for()
    assert page.locator("#lineage-list h3").all_inner_texts() == ["CHECKPOINT", "MEMORY", "INDEX"]
    index = page.locator("#lineage-list article").nth(2)
    index.get_by_text("Settings that made it", exact=True).first.click()
    memory = manifest_hash(evaluation_artefacts.memory)
    index.get_by_role("row").filter(has_text=f"{memory} = the MEMORY of this page").wait_for()
    visit.check()


# --- comparing ---


def test_two_systems_side_by_side(browser: "Browser", fused: System, system: System, tmp_path: Path) -> None:
    served, against = (asked.ask(QUESTION, passages=4) for asked in (fused, system))
    with server_of(fused, against=system) as (_, url):
        visit = Visit(browser, url, "/#compare")
        page = visit.page
        page.locator("#compare-question").fill(QUESTION)
        page.locator("#compare-form").get_by_label("Passages").fill("4")
        page.locator("#compare-question").press("Enter")
        page.get_by_text("1 compared.").wait_for()
        assert page.locator("#compare-detail .answer").all_inner_texts() == [served.text, against.text]
        rows = [cells.split("\t") for cells in page.locator("#compare-detail tbody tr").all_inner_texts()]
        places = [{p.row_id: n for n, p in enumerate(found.passages, 1)} for found in (served, against)]
        ids = list(dict.fromkeys([*places[0], *places[1]]))
        assert [row[-3:-1] for row in rows] == [[str(own.get(row, "–")) for own in places] for row in ids]
        assert {row[-1] for row in rows} <= {"only served", "only against", "same place"} | {
            f"{way} {by}" for way in ("up", "down") for by in (1, 2, 3)
        }
        visit.check()
        questions = tmp_path / "questions.jsonl"
        questions.write_text(f"{json.dumps({'question': QUESTION})}\n\nWho is the mayor of Arlen?\n", encoding="utf-8")
        page.locator("#compare-question").fill("")
        page.locator("#compare-form").get_by_label("Or a file").set_input_files(questions)
        page.locator("#compare-form").get_by_role("button", name="Compare").click()
        page.get_by_text("2 compared.").wait_for()
        assert page.locator("#compare-summary tbody tr").count() == 2
        page.get_by_role("button", name="Who is the mayor of Arlen?").click()
        page.get_by_role("heading", name="Who is the mayor of Arlen?").wait_for()
        visit.check()
        questions.write_text('{"query": "Who?"}\n', encoding="utf-8")
        page.locator("#compare-form").get_by_label("Or a file").set_input_files(questions)
        page.locator("#compare-form").get_by_role("button", name="Compare").click()
        page.get_by_text("Line 1 of the file is no question").wait_for()
        assert visit.wrong == []


def test_one_system_has_nothing_to_compare_with(browser: "Browser", url: str) -> None:
    visit = Visit(browser, url, "/#compare")
    visit.page.get_by_text("One system is served.").wait_for()
    visit.check()


# --- streaming ---


def test_an_answer_streams_in_and_is_stopped(browser: "Browser", system: System) -> None:
    with server_of(system, max_running=1, max_waiting=0, max_answer_tokens=1500) as (_, url):
        visit = Visit(browser, url)
        ask(visit, max_tokens=1500)
        page = visit.page
        begun(visit)
        assert page.locator("#passages > li").count() == 5
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        assert page.locator("#answer[aria-busy]").count() == 0
        visit.check()
        small = {"question": QUESTION, "max_tokens": 1}
        wait_for(lambda: httpx.post(f"{url}/v1/answers", json=small, timeout=60).status_code == 200)


# --- errors ---


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: "Browser", fused: System) -> None:
    with server_of(fused, key="secret") as (_, url):
        visit = Visit(browser, url)
        page, key = visit.page, visit.page.get_by_label("Key", exact=True)
        ask(visit)
        key.wait_for()
        visit.check()
        page.get_by_role("button", name="Cancel").click()
        assert error(visit) == "This service needs a key (status 401)."
        ask(visit)
        key.fill("wrong")
        key.press("Enter")
        page.get_by_text("This key is not the service's.").wait_for()
        key.fill("secret")
        key.press("Enter")
        answered(visit)
        page.reload()
        ask(visit)
        answered(visit)
        page.get_by_role("button", name="Forget the key").click()
        ask(visit)
        key.wait_for()
        assert visit.wrong == []


def test_errors_are_one_line(browser: "Browser", system: System) -> None:
    limits = {"max_running": 1, "max_waiting": 0, "max_answer_tokens": 1500}
    with server_of(system, **limits) as (_, url):
        visit = Visit(browser, url)
        ask(visit, passages=1000)
        assert error(visit).startswith("passages: 1000, and this service takes 100 at most")
        visit.check()
        with held(system, url):
            ask(visit, passages=2)
            said = "as many requests wait as this service takes (serving.max_waiting); try again"
            assert error(visit) == f"{said} (status 429; try again in 1 s)"
        visit.page.reload()
    ask(visit)
    assert error(visit).startswith("The service does not answer")
    assert visit.wrong == []


def test_an_error_in_the_middle_of_a_stream(browser: "Browser", url: str) -> None:
    events = [("passages", {"passages": []}), ("piece", {"text": "iro"}), ("error", {"error": {"message": "too late"}})]
    visit = Visit(browser, url)
    for sent, said in ((events, "too late"), (events[:2], "The answer ended before it was complete; try again.")):
        pretend(visit, sent)
        ask(visit)
        assert error(visit) == said
        assert visit.page.locator("#answer").inner_text() == "iro"
    visit.check()


def test_a_service_that_is_being_stopped(browser: "Browser", system: System) -> None:
    with server_of(system, shutdown_seconds=0, max_answer_tokens=1500) as (server, url):
        visit = Visit(browser, url)
        ask(visit, max_tokens=1500)
        begun(visit)
        threading.Timer(0.1, lambda: setattr(server, "should_exit", True)).start()
        assert re.match(r"the service is being stopped|The connection to the service ended", error(visit))
        assert visit.wrong == []
