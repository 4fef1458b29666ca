"""A browser on the page of the service: the distribution's Chromium, driven by playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser without a window; the test is skipped where there is none."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine; install the distribution's package chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what went wrong on it.

    Attributes:
        page: of playwright.
        wrong: errors of scripts, what the console reports, and requests to other hosts.
    """

    def __init__(self, browser: "Browser", url: str, path: str = "/") -> None:
        self.page: Page = browser.new_page(viewport={"width": 1000, "height": 900})
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("request", lambda request: None if request.url.startswith(url) else self.wrong.append(request.url))
        self.page.goto(url + path)

    def _hear(self, message: Any) -> None:
        # A status that is no success is reported by the browser itself.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def check(self) -> None:
        """Nothing went wrong, and axe-core finds nothing in what is seen, light and dark."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found = axe.Axe().run(self.page)
            assert found.violations_count == 0, found.generate_report()
        self.page.emulate_media(color_scheme="light")
        assert self.wrong == []

    def picture(self, name: str, folder: Path) -> Path:
        """A picture of the page, in the folder that CLARA_PICTURES names, else in the given one."""
        path = Path(os.environ.get("CLARA_PICTURES", folder)) / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled")
        return path
