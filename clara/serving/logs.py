"""The service's log: one JSON object a line."""

import json
import logging
from typing import TextIO

from clara.serving.metrics import Metrics


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, logger, message, and what `extra={"fields": …}` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream; a line that it does not take (a full disk) is counted, and the service continues."""

    def __init__(self, stream: TextIO, metrics: Metrics) -> None:
        super().__init__(stream)
        self._metrics = metrics
        self.setFormatter(JsonLines())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """See `logging.Handler`."""
        self._metrics.lost_lines.inc()
