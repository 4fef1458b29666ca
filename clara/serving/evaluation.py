"""The route that shows an evaluation report: of the EVALUATION that is named beside the system, or of a version."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from clara.errors import InputError
from clara.serving.errors import DOCUMENTED, error_response
from clara.serving.service import as_json
from clara.storage.artefact import Artefact

Report = Callable[[str], Mapping[str, Any] | None]
"""Reads the report of a version of the registered model; None: no such version. Raises InputError if the store does
not answer."""


class EvaluationQuery(BaseModel):
    """Which report."""

    model_config = ConfigDict(extra="forbid")
    version: str = Field("", pattern=r"^[0-9]*$", max_length=20, description="of the registered model; empty: none")


class EvaluationReply(BaseModel):
    """A report; without a name none is known."""

    name: str = Field("", description="of the EVALUATION, or the version")
    report: dict[str, Any] = Field({}, description="its report.json: figures, differences, counts")


def read_report(name: str) -> EvaluationReply:
    """The report of an EVALUATION.

    Raises:
        InputError: it is none, or is not finished.
    """
    artefact = Artefact.open(name, "EVALUATION")
    with artefact.file("report.json").open(encoding="utf-8") as lines:
        return EvaluationReply(name=artefact.name, report=json.load(lines))


def add_evaluation(app: APIRouter, given: EvaluationReply, report: Report | None) -> None:
    """Add the route.

    Args:
        app: of the service.
        given: reply where no version is named.
        report: reads that of a version; None: no registered model is served.
    """

    @app.get("/v1/evaluation", responses=DOCUMENTED, response_model=EvaluationReply)
    def evaluation(asked: Annotated[EvaluationQuery, Query()]) -> Response:
        """The evaluation report of a registered version, or the one that the service was started with."""
        if not asked.version:
            return as_json(given)
        try:
            found = report(asked.version) if report else None
        except InputError as error:
            return error_response(503, str(error), "registry_away")
        if found is None:
            raise InputError(f"version: {asked.version!r} is none of the model that is served; see /v1/registry")
        return as_json(EvaluationReply(name=f"version {asked.version}", report=dict(found)))
