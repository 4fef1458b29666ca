"""Whatever a client sends: a documented status, JSON in the documented form, and a service that still answers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.serving.errors import ErrorReply
from clara.system import System
from tests.helpers.fuzz import examples
from tests.helpers.http_service import client_of

_ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", ""])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.text("?a\n\ud800", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_SMALL = st.integers(-1, 3) | _VALUES
_MESSAGES = st.lists(st.fixed_dictionaries({"role": _ROLES, "content": st.text(max_size=20) | _VALUES}), max_size=3)
_FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "/v1/answers": {"question": _VALUES, "passages": _SMALL, "max_tokens": _SMALL, "stream": _VALUES, "other": _VALUES},
    "/v1/search": {"questions": st.lists(st.text(max_size=20) | _VALUES, max_size=3), "k": _SMALL, "q": _VALUES},
    "/v1/chat/completions": {
        **{"model": st.just("clara") | _VALUES, "messages": _MESSAGES | _VALUES, "max_tokens": _SMALL},
        **{"stream": _VALUES, "n": _SMALL, "temperature": _SMALL, "passages": _SMALL, "stream_options": _VALUES},
    },
}


def bodies(path: str) -> st.SearchStrategy[bytes]:
    """Bodies of a route: with some of its fields, any JSON, and any bytes."""
    some = st.fixed_dictionaries({}, optional=_FIELDS[path])
    as_json = (some | _VALUES).map(lambda value: json.dumps(value).encode())
    return as_json | st.tuples(as_json, st.integers(0, 50)).map(lambda cut: cut[0][: cut[1]]) | st.binary(max_size=50)


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[TestClient]:
    with client_of(system, max_new_tokens=2) as found:
        yield found


@pytest.mark.parametrize("path", _FIELDS)
def test_only_documented_statuses(client: TestClient, path: str) -> None:
    documented = client.get("/openapi.json").json()["paths"][path]["post"]["responses"]

    @settings(max_examples=examples(30), deadline=None)
    @given(body=bodies(path))
    def check(body: bytes) -> None:
        reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert str(reply.status_code) in documented
        assert reply.status_code < 500
        if reply.status_code != 200:
            assert ErrorReply.model_validate(reply.json()).error.message

    check()
    assert client.post("/v1/search", json={"questions": ["Who?"], "k": 1}).status_code == 200
