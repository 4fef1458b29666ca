"""The back ends of run logging. Another one is a class with the methods of `RunLog` and an entry in `BACK_ENDS`."""

from collections.abc import Callable
from types import ModuleType
from urllib.parse import urlparse

from clara.tracking.mlflow_log import MlflowLog
from clara.tracking.run_log import RunLog

BACK_ENDS: dict[str, Callable[[str], RunLog]] = {}
"""Back ends by the scheme of their URIs; MLflow takes every other URI."""


def open_log(uri: str, mlflow: Callable[[], ModuleType]) -> RunLog:
    """The run log of a store that answers.

    Args:
        uri: of the store; its scheme chooses the back end.
        mlflow: imports the package `mlflow`, which this package does not import.

    Raises:
        TrackingError: the store cannot be created, reached or read.
    """
    back_end = BACK_ENDS.get(urlparse(uri).scheme)
    return back_end(uri) if back_end else MlflowLog(uri, mlflow())
