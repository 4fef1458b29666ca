"""The evaluation report that the page shows: the given one, or that of a registered version."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clara.config.serving import Serving
from clara.errors import InputError
from clara.serving import command
from clara.serving.app import make_app
from clara.serving.evaluation import read_report
from clara.storage.manifest import file_entry, write_manifest
from clara.system import System
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import client_of

REPORT = {"systems": {"after": {"unseen": {}}}}


def test_the_given_report_is_that_of_its_file(system: System, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    write_manifest(tmp_path, kind="EVALUATION", files=[file_entry(tmp_path, "report.json")], recipe={}, counts={})
    app = make_app(system, Serving(), evaluation=read_report(str(tmp_path)))
    with TestClient(app) as client:
        found = client.get("/v1/evaluation").json()
    assert found == {"name": str(tmp_path), "report": REPORT}


def test_a_version_has_its_report(system: System) -> None:
    with client_of(system, key="secret", report={"2": REPORT}.get) as client:
        assert client.get("/v1/evaluation").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/v1/evaluation?version=2").json() == {"name": "version 2", "report": REPORT}
        for query, message in (
            ("version=3", "version: '3' is none of the model that is served; see /v1/registry"),
            ("version=a", "version: String should match pattern"),
            ("name=2", "name: Extra inputs are not permitted"),
        ):
            reply = client.get(f"/v1/evaluation?{query}")
            assert reply.status_code == 422
            assert reply.json()["error"]["message"].startswith(message)


def test_nothing_is_known_where_nothing_is_named(system: System) -> None:
    with client_of(system) as client:
        assert client.get("/v1/evaluation").json() == {"name": "", "report": {}}
        assert client.get("/v1/evaluation?version=1").status_code == 422


def test_a_store_that_is_away_is_one_line(system: System) -> None:
    def away(_: str) -> dict[str, Any]:
        raise InputError("--tracking-uri 'http://h': does not answer")

    with client_of(system, report=away) as client:
        reply = client.get("/v1/evaluation?version=2")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "registry_away")


def test_the_command_refuses_what_is_no_evaluation(evaluation_artefacts: World) -> None:
    world = evaluation_artefacts
    given = [f"--checkpoint={world.checkpoint}", f"--memory={world.memory}", f"--index={world.index}", "--port=0"]
    with pytest.raises(InputError, match="holds MEMORY, expected EVALUATION"):
        command.main([*given, f"--evaluation={world.memory}", "--dry-run"])
