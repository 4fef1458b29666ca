"""The route that shows the registered model that is served: versions, their measures, and the record of promotions."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from clara.errors import InputError
from clara.serving.errors import DOCUMENTED, error_response
from clara.serving.service import as_json

Describe = Callable[[], Mapping[str, Any]]
"""Reads the registry: the fields of `RegistryReply`. Raises InputError if the store does not answer."""


class VersionReply(BaseModel):
    """A version of the model."""

    version: str
    aliases: list[str]
    registered: str
    system: str = Field(description="its name in the evaluation that it was registered with")
    checkpoint_hash: str
    memory_hash: str
    index_hash: str
    questions_hash: str = Field(description="of the questions of its evaluation")
    measures: dict[str, float] = Field(description="of its evaluation, by split, system and measure")
    page: str = Field(description="of its run in MLflow; empty: the store has no pages")


class DecisionReply(BaseModel):
    """A decision about an alias."""

    at: str = Field(description="in UTC, as 20261130T164501.123456Z")
    alias: str
    version: str
    before: str | None = Field(description="the version that held the alias then")
    outcome: str
    reason: str
    test: dict[str, Any] | None = Field(description="the paired test against that version")
    floors: list[dict[str, Any]]


class RegistryReply(BaseModel):
    """The registered model; without a name: paths are served, and no registry is known."""

    name: str = ""
    page: str = Field("", description="of the model in MLflow; empty: the store has no pages")
    versions: list[VersionReply] = []
    record: list[DecisionReply] = []


def add_registry(app: APIRouter, describe: Describe | None) -> None:
    """Add the route. It reads the registry each time that it is asked for."""

    @app.get("/v1/registry", responses=DOCUMENTED, response_model=RegistryReply)
    def registry() -> Response:
        """Versions of the registered model that is served, and who got which alias, when and why."""
        try:
            return as_json(RegistryReply(**(describe() if describe else {})))
        except InputError as error:
            return error_response(503, str(error), "registry_away")
