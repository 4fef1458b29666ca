"""The record of a model's promotions: an entry for each decision about an alias, as a tag of the version.

Tags of versions are what every server of MLflow 2 and 3 keeps; an entry is far below their 5,000 characters.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROMOTION = "clara.promotion"
"""Of the tag with the last decision in words (`.ALIAS`), and of the entries (`.ALIAS.TIME`)."""
_ENTRY = re.compile(rf"{re.escape(PROMOTION)}\.[A-Za-z0-9_-]+\.\d{{8}}T\d{{6}}\.\d{{6}}Z")
_LONGEST_REASON = 1500
Outcome = Literal["promoted", "refused", "rolled back"]
PROMOTED: Outcome = "promoted"
REFUSED: Outcome = "refused"
ROLLED_BACK: Outcome = "rolled back"


@dataclass(frozen=True)
class Entry:
    """A decision about an alias.

    Attributes:
        alias: that was asked for.
        version: that asked for it, or got it back.
        before: the version that held it then; None: nobody did.
        outcome: what was done.
        reason: why, in words.
        at: when, in UTC, as `20261130T164501.123456Z`.
        split: of the questions that decided.
        measure: that was compared with the holder's.
        questions: manifest hash of the QUESTIONS.
        test: the paired test against the holder; None: there was nobody to compare with, or no way to.
        floors: each with its figures (`training.registry.floors.Check`).
    """

    alias: str
    version: str
    before: str | None
    outcome: Outcome
    reason: str
    at: str = ""
    split: str = ""
    measure: str = ""
    questions: str = ""
    test: dict[str, Any] | None = None
    floors: tuple[dict[str, Any], ...] = ()


def note(client: "MlflowClient", name: str, entry: Entry) -> None:
    """Add an entry to the record of a model."""
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = dataclasses.replace(entry, at=at, reason=entry.reason[:_LONGEST_REASON])
    tag = f"{PROMOTION}.{entry.alias}.{at}"
    client.set_model_version_tag(name, entry.version, tag, json.dumps(dataclasses.asdict(kept), ensure_ascii=False))


def record_of(versions: Iterable["ModelVersion"]) -> list[Entry]:
    """The entries of a model's versions, oldest first."""
    entries = [
        Entry(**{**json.loads(value), "version": str(version.version)})
        for version in versions
        for tag, value in version.tags.items()
        if _ENTRY.fullmatch(tag)
    ]
    return sorted(entries, key=lambda entry: entry.at)


def holders(record: Sequence[Entry], alias: str) -> list[str]:
    """The versions that a roll-back goes through, the present holder last.

    A promotion adds one, a roll-back takes the last away. An alias that was moved by other means shows in the next
    entry's `before`.
    """
    found: list[str] = []
    for entry in record:
        if entry.alias != alias or entry.outcome == REFUSED:
            continue
        if entry.before is None:
            found = []
        elif found[-1:] != [entry.before]:
            found.append(entry.before)
        if entry.outcome == PROMOTED:
            found.append(entry.version)
        else:
            found.pop()
    return found
