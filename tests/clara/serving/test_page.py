"""The page's files: they are in the package, are served with their types, and name nothing outside the service."""

import importlib.resources
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from fastapi.testclient import TestClient

from clara.system import System
from tests.helpers.http_service import client_of

FILES = {
    entry.name: entry.read_text(encoding="utf-8")
    for entry in importlib.resources.files("clara.serving").joinpath("static").iterdir()
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[TestClient]:
    with client_of(system, key="secret") as found:
        yield found


def test_the_page_and_its_files_need_no_key(client: TestClient) -> None:
    page = client.get("/")
    assert (page.status_code, page.text) == (200, FILES["index.html"])
    assert len(FILES) > 6
    for name, text in FILES.items():
        reply = client.get(f"/static/{name}")
        assert reply.text == text
        assert reply.headers["content-type"].startswith(TYPES[PurePosixPath(name).suffix])
        assert reply.headers["cache-control"] == "no-cache"
    for path in ("/static/", "/static/none.js", "/static/../app.py", "/static/%2e%2e/app.py", "/docs", "/redoc"):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_a_file_is_sent_however_late_it_is(system: System) -> None:
    with client_of(system, request_seconds=1e-9) as client:
        assert client.get("/static/main.js").text == FILES["main.js"]


def test_a_browser_may_load_from_the_service_alone(client: TestClient) -> None:
    for path in ("/", "/static/main.js", "/v1/models", "/nowhere", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert not re.search(r"https?:|unsafe|\*|data:", headers["content-security-policy"])
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", FILES)
def test_files_are_short_and_name_no_other_host(name: str) -> None:
    text = FILES[name].replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(?:https?:)?//[\w.]+\.\w", text)
    assert len(text.splitlines()) <= 300
    assert max(map(len, text.splitlines())) <= 160


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".js", ".html"))])
def test_text_never_becomes_html_or_a_program(name: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", FILES[name])
    assert not re.search(r"\sstyle=|\son\w+=\"", FILES[name])


def test_what_the_page_names_is_there() -> None:
    html = FILES["index.html"]
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    for name, text in FILES.items():
        assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= set(ids), name
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= set(FILES), name
    assert set(re.findall(r'(?:for|aria-labelledby)="([\w-]+)"', html)) <= set(ids)
    assert set(re.findall(r'"static/([\w.]+)"', html)) <= set(FILES)
