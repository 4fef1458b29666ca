"""The registered model that is served: versions with measures, and the record of promotions."""

from typing import Any

from clara.errors import InputError
from clara.system import System
from tests.helpers.http_service import client_of
from tests.helpers.registered_model import DECISION, FOUND, VERSION


def test_what_the_registry_says_is_passed_on(system: System) -> None:
    with client_of(system, describe=lambda: FOUND) as client:
        found = client.get("/v1/registry").json()
    assert (found["name"], found["page"]) == ("towns", FOUND["page"])
    assert (found["versions"], found["record"]) == ([VERSION], [DECISION])


def test_paths_are_of_no_registry(system: System) -> None:
    with client_of(system) as client:
        assert client.get("/v1/registry").json() == {"name": "", "page": "", "versions": [], "record": []}


def test_a_store_that_is_away_is_one_line(system: System) -> None:
    def away() -> dict[str, Any]:
        raise InputError("--tracking-uri 'http://h': does not answer")

    with client_of(system, key="secret", describe=away) as client:
        assert client.get("/v1/registry").status_code == 401
        reply = client.get("/v1/registry", headers={"Authorization": "Bearer secret"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "registry_away")
    assert reply.json()["error"]["message"] == "--tracking-uri 'http://h': does not answer"
