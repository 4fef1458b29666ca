"""The OpenAPI document is true: what schemathesis makes of it has a documented status and a reply that fits its schema.

Its seed is fixed: equal code, equal requests.
"""

from collections import Counter
from typing import Any

import pytest

from clara.config.serving import Serving
from clara.serving.app import make_app
from clara.system import System
from tests.helpers.fuzz import examples

SETTINGS = {
    "seed": 1,
    "generation": {"deterministic": True, "max-examples": examples(30)},
    # Nothing that one request makes is an input of another.
    "phases": {"stateful": {"enabled": False}},
    # What a schema allows may be refused: lengths are limited by settings, and passages by what MEMORY holds.
    "checks": {"positive_data_acceptance": {"enabled": False}},
}
SMALL = 8


def small(_: Any, body: Any) -> Any:
    """A body whose numbers are below the service's limits, and whose model is the one that it has."""
    if not isinstance(body, dict):
        return body
    given = {
        name: value for name, value in body.items() if name in ("k", "passages", "max_tokens", "max_completion_tokens")
    }
    numbers = {name: min(value, SMALL) for name, value in given.items() if type(value) is int}
    return body | numbers | ({"model": "clara"} if isinstance(body.get("model"), str) else {})


@pytest.mark.slow
def test_each_request_has_a_documented_status_and_reply(system: System) -> None:
    import schemathesis
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import from_schema
    from schemathesis.engine.events import EngineEvent, FatalError, NonFatalError, ScenarioFinished

    app = make_app(system, Serving(max_new_tokens=2, max_answer_tokens=SMALL))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(SETTINGS))
    schema.hooks.hook("map_body")(small)
    statuses: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []

    def note(event: EngineEvent) -> None:
        if isinstance(event, NonFatalError | FatalError):
            wrong.append(str(event))
        if not isinstance(event, ScenarioFinished):
            return
        label = event.recorder.label
        statuses.update(
            (label, node.response.status_code) for node in event.recorder.interactions.values() if node.response
        )
        failed = [check for checks in event.recorder.checks.values() for check in checks if check.failure_info]
        wrong.extend(f"{label}: {check.name}: {check.failure_info.failure}" for check in failed)

    for event in from_schema(schema).execute():
        note(event)
    assert wrong == []
    paths = app.openapi()["paths"]
    assert {label for label, _ in statuses} == {f"{m.upper()} {path}" for path in paths for m in paths[path]}
    answered = {label for label, status in statuses if status == 200}
    assert answered >= {"POST /v1/answers", "POST /v1/search", "POST /v1/chat/completions", "GET /v1/memory/documents"}
    refused = {label for label, status in statuses if status == 422}
    assert refused >= {"POST /v1/answers", "POST /v1/search", "POST /v1/chat/completions", "POST /v1/utility"}
