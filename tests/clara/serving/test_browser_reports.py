"""The page in a browser: the registered model, its promotions, and whole evaluation reports.

`CLARA_PICTURES=docs/pictures pytest -m slow tests/clara/serving/test_browser_reports.py` writes the documentation's
picture.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clara.system import System
from tests.helpers.browser import Visit
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import server_of
from tests.helpers.registered_model import FOUND
from training import evaluate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(evaluation_artefacts: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """That of an evaluation of two systems, some of whose answers are timed."""
    world, output = evaluation_artefacts, tmp_path_factory.mktemp("evaluated") / "evaluation"
    given = ["--questions", str(world.questions), "--output", str(output), "--num-selected", "2", "--generate", "2"]
    given += ["--baselines", "bm25", "--timed", "2"]
    for name, checkpoint in (("before", world.checkpoint), ("after", world.trained)):
        given += ["--system", f"{name}={checkpoint},{world.memory},{world.index}"]
    assert evaluate.main(given) == 0
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def test_the_registered_model_its_versions_and_decisions(browser: "Browser", fused: System) -> None:
    with server_of(fused, describe=lambda: FOUND) as (_, url):
        visit = Visit(browser, url, path="/#lineage")
        page = visit.page
        page.get_by_role("heading", name="Registered model towns").wait_for()
        cells = page.get_by_role("row").filter(has_text="beats the champion").inner_text().split("\t")
        floor = "answer.seconds<=2.0 reached: -0.5 [-0.6, -0.4], 12 questions"
        assert cells[:5] == ["2026-11-30 16:45:01 UTC", "champion", "2", "1", "promoted"]
        assert cells[5].split() == f"beats the champion {floor}".split()
        page.get_by_role("heading", name="Version 2 (champion)").wait_for()
        page.get_by_text("Means of its evaluation", exact=True).click()
        page.get_by_role("row").filter(has_text="unseen/after/index.recall_5").get_by_text("0.75").wait_for()
        assert page.get_by_role("link", name="Model in MLflow").get_attribute("href") == FOUND["page"]
        visit.check()


def test_a_whole_evaluation_report_is_readable(
    browser: "Browser", fused: System, report: dict[str, Any], tmp_path: Path
) -> None:
    with server_of(fused, describe=lambda: FOUND, report={"2": report}.get) as (_, url):
        visit = Visit(browser, url, path="/#lineage")
        page = visit.page
        page.get_by_role("link", name="Evaluation report of version 2").click()
        page.get_by_text("Report of version 2", exact=True).wait_for()
        assert page.title() == "Evaluation · CLaRa"
        splits = list(next(iter(report["systems"].values())))
        headings = page.locator("#evaluation-report h3").all_inner_texts()
        assert headings == [f"Split: {split or 'All questions'}" for split in splits]
        own = page.locator("#evaluation-report article").first
        figure = report["systems"]["after"][splits[0]]["index.recall@5"]
        shown = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        own.locator("table").first.get_by_role("row").filter(has_text="index.recall@5").get_by_text(
            shown
        ).first.wait_for()
        own.get_by_text("All measures", exact=True).click()
        every = {name for of in report["systems"].values() for name in of[splits[0]]}
        rows = own.locator("details").first.locator("tbody th").all_inner_texts()
        assert sorted(rows) == sorted(every)
        page.get_by_text("What the measures mean").click()
        visit.check()
        page.get_by_text("What the measures mean").click()
        own.get_by_text("All measures", exact=True).click()
        assert visit.picture("page_evaluation", tmp_path).stat().st_size < 150_000


def test_without_an_evaluation_the_page_says_how_to_name_one(browser: "Browser", fused: System) -> None:
    with server_of(fused) as (_, url):
        visit = Visit(browser, url, path="/#evaluation")
        visit.page.get_by_text("No evaluation report is known.").wait_for()
        visit.check()
