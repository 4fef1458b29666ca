"""A registered model as the registry describes it to the service."""

from typing import Any

VERSION: dict[str, Any] = {
    **{"version": "2", "aliases": ["champion"], "registered": "2026-11-30T16:45:01+00:00", "system": "after"},
    **dict.fromkeys(("checkpoint_hash", "memory_hash", "index_hash", "questions_hash"), "a" * 64),
    **{"measures": {"unseen/after/index.recall_5": 0.75}, "page": ""},
}
FLOOR: dict[str, Any] = {
    **{"floor": "answer.seconds<=2.0", "reached": True, "difference": -0.5, "low": -0.6, "high": -0.4},
    **{"num_questions": 12, "num_targets": 6},
}
DECISION: dict[str, Any] = {
    **{"at": "20261130T164501.123456Z", "alias": "champion", "version": "2", "before": "1", "outcome": "promoted"},
    **{"reason": "beats the champion", "test": {"difference": 0.5}, "floors": [FLOOR]},
}
FOUND: dict[str, Any] = {
    "name": "towns",
    "aliases": {"champion": "2"},
    "page": "http://mlflow.example/#/models/towns",
    "versions": [VERSION | {"run_id": "r"}],
    "record": [DECISION],
}
