"""Evaluate all systems, one model in memory at a time; finished parts are kept, so that a later run resumes."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clara.config.tree import Retrieval
from clara.data.questions import Question
from clara.errors import InputError
from clara.index.dense_model import open_encoder
from clara.retrieval.retriever import Retriever
from clara.storage.folders import atomic_write
from clara.storage.manifest import hash_of
from training.evaluation.measures import Row
from training.evaluation.pairs import ReadingCaches, evaluate_system, first_of_each_split, own_rankings
from training.evaluation.retrievers import Rankings
from training.evaluation.systems import Settings, SystemPaths, missing_documents, open_system, questions_hash
from training.evaluation.timing import time_answers

logger = logging.getLogger(__name__)
PARTS = ".parts"


@dataclass
class EvaluationRun:
    """One evaluation under way.

    Attributes:
        systems: to be compared, in this order.
        questions: what they are asked.
        settings: what is done with each.
        output: EVALUATION directory, whose parts are read and written.
        backbone: folder of the LM, or empty.
        stale: names of systems whose MEMORY another compressor made.
        retrieval: which embedding model, if any, and up to how many rows a MEMORY is searched exactly.
        device: where models compute.
    """

    systems: Sequence[SystemPaths]
    questions: Sequence[Question]
    settings: Settings
    output: Path
    backbone: str = ""
    stale: Sequence[str] = ()
    retrieval: Retrieval = field(default_factory=Retrieval)
    device: str = "cpu"

    _opened: tuple[SystemPaths, Retriever] | None = None

    def rows(self) -> tuple[list[Row], dict[str, Any]]:
        """Rows of all systems, and counts of what could not be measured.

        Raises:
            InputError: artefacts that are damaged or do not belong together.
        """
        found = self._found() if self.settings.cross else None
        shared = ReadingCaches(
            open_encoder(self.retrieval, self.device) if self.retrieval.dense_model else None, self.output / PARTS
        )
        rows: list[Row] = []
        counts: dict[str, Any] = {}
        for number, system in enumerate(self.systems):
            plan: list[Any] = [self._plan(system) | {"with_text": number == 0}, self.settings.plan()]
            if found is not None:
                plan.append([self._plan(s) for s in self.systems])
            part = self._part([*plan, questions_hash(self.questions)])
            if part.is_file():
                logger.info("system %s: measured before, in %s", system.name, part)
            else:
                measured = evaluate_system(
                    system.name,
                    self._open(system),
                    self.questions,
                    self.settings,
                    with_text=number == 0,
                    shared=shared,
                    found=found,
                )
                timed = first_of_each_split(self.questions, self.settings.num_timed)
                clocked = [question for question in self.questions if question.question_id in timed]
                time_answers(system.name, self._open(system), clocked, self.settings, measured)
                absent = missing_documents(self.questions, self._open(system))
                atomic_write(part, json.dumps({"rows": measured, "absent": absent}, ensure_ascii=False))
            done = json.loads(part.read_text(encoding="utf-8"))
            rows += done["rows"]
            counts |= {f"{system.name}: {what}": count for what, count in done["absent"].items()}
        return rows, counts

    def _found(self) -> Mapping[str, Sequence[Rankings]]:
        """What every system's own retrieval finds.

        Raises:
            InputError: their MEMORYs hold different rows.
        """
        found: dict[str, Sequence[Rankings]] = {}
        first = ""
        for system in self.systems:
            part = self._part(
                [
                    "rankings",
                    self._plan(system) | self.settings.searched(),
                    self.settings.num_selected,
                    self.settings.pool_size,
                    questions_hash(self.questions),
                ]
            )
            if not part.is_file():
                rankings = own_rankings(system.name, self._open(system), self.questions, self.settings)
                rows = hash_of(self._open(system).store.row_ids.tolist())
                atomic_write(part, json.dumps({"rows": rows, "rankings": [asdict(r) for r in rankings]}))
            done = json.loads(part.read_text(encoding="utf-8"))
            first = first or done["rows"]
            if done["rows"] != first:
                raise InputError(
                    f"--cross: the MEMORY of system {system.name}, {system.memory}, has other rows than that of "
                    f"{self.systems[0].name}, "
                    f"{self.systems[0].memory}; give MEMORYs of one corpus and chunking, or leave --cross out"
                )
            found[system.name] = [Rankings(**{k: tuple(v) for k, v in r.items()}) for r in done["rankings"]]
        return found

    def _plan(self, system: SystemPaths) -> dict[str, Any]:
        return {"system": system.name, **system.hashes(), "stale": system.name in self.stale}

    def _part(self, key: Sequence[Any]) -> Path:
        return self.output / PARTS / f"{hash_of(list(key))}.json"

    def _open(self, system: SystemPaths) -> Retriever:
        if self._opened is None or self._opened[0] != system:
            # Let go first: two models of several billion parameters may not fit beside each other.
            self._opened = None
            stale = system.name in self.stale
            opened = open_system(
                system, self.backbone, accept_stale=stale, device=self.device, retrieval=self.retrieval
            )
            self._opened = system, opened
        return self._opened[1]


def compared_pairs(names: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(challenger, base) labels whose paired difference is shown.

    Every system with those before it, and with the baselines beside it. Where generators read what others found, also
    the two steps of which the difference of two systems is made: retrieval under one generator, the generator on one
    retrieval.
    """
    labels = dict.fromkeys(row["system"] for row in rows)
    later_first = [(later, earlier) for number, later in enumerate(names) for earlier in names[:number]]
    pairs = list(later_first)
    for later, earlier in later_first:
        crossed, back = f"{earlier}/{later}", f"{later}/{earlier}"
        pairs += [(later, crossed), (crossed, earlier), (back, earlier), (later, back)]
        pairs.append((f"text/{later}", f"text/{earlier}"))
    pairs += [(name, base) for name in names for base in (f"bm25/{name}", f"dense/{name}", "text/bm25", "text/dense")]
    return [(a, b) for a, b in pairs if a in labels and b in labels]
