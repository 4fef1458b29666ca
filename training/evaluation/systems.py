"""The systems that are compared, and what is done with each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clara.config.evaluation import BASELINES, CONDITIONS, Evaluation
from clara.config.tree import Retrieval
from clara.data.questions import Question
from clara.errors import InputError
from clara.storage.manifest import hash_of, manifest_hash

if TYPE_CHECKING:
    from clara.retrieval.retriever import Retriever

_DEFAULTS, _EXACT_ROWS = Evaluation(), Retrieval().exact_rows


@dataclass(frozen=True)
class SystemPaths:
    """A named CHECKPOINT with its MEMORY and, where there is one, its INDEX."""

    name: str
    checkpoint: str
    memory: str
    index: str | None = None

    @classmethod
    def parse(cls, text: str) -> "SystemPaths":
        """`NAME=CHECKPOINT,MEMORY[,INDEX]`.

        Raises:
            InputError: other parts than these.
        """
        name, _, rest = text.partition("=")
        paths = [p.strip() for p in rest.split(",")]
        if not name.strip() or "/" in name or len(paths) not in (2, 3) or not all(paths):
            raise InputError(
                f"--system {text!r}: expected NAME=CHECKPOINT,MEMORY or NAME=CHECKPOINT,MEMORY,INDEX (no / in the name)"
            )
        if name.strip() in BASELINES:
            raise InputError(
                f"--system {text!r}: {name.strip()!r} is what a baseline is called in the report; choose another name"
            )
        return cls(name.strip(), paths[0], paths[1], paths[2] if len(paths) == 3 else None)

    def hashes(self) -> dict[str, str]:
        """Manifest hashes of its artefacts."""
        named = {"checkpoint": self.checkpoint, "memory": self.memory, "index": self.index}
        return {kind: manifest_hash(path) for kind, path in named.items() if path is not None}


@dataclass(frozen=True)
class Settings:
    """What an evaluation does with every system.

    Attributes:
        num_selected: K, rows in a prompt.
        pool_size: documents of a pool that has to be made, where a question was published without one.
        max_new_tokens: longest answer.
        num_generated: questions of each split that are answered in words as well; 0: none.
        generate_conditions: what they are answered from.
        conditions: what answer likelihoods are measured after reading.
        baselines: `bm25`, `dense`, `text`.
        dense: hash of the embedding model's folder; empty without that baseline.
        cross: every system's generator reads what every system's retrieval found.
        num_aligned: questions of each split whose utility alignment is measured; 0: none.
        retrieval_only: rank and read nothing: no likelihoods, no answers.
        exact_rows: a MEMORY of at most so many rows is searched exactly.
        num_timed: questions of each split that are answered against the clock; 0: none.
    """

    num_selected: int = _DEFAULTS.num_selected
    pool_size: int = _DEFAULTS.pool_size
    max_new_tokens: int = _DEFAULTS.max_new_tokens
    num_generated: int = 0
    generate_conditions: tuple[str, ...] = _DEFAULTS.generate_conditions
    baselines: tuple[str, ...] = ()
    dense: str = ""
    cross: bool = False
    num_aligned: int = 0
    retrieval_only: bool = False
    conditions: tuple[str, ...] = CONDITIONS
    exact_rows: int = _EXACT_ROWS
    num_timed: int = 0

    def plan(self) -> dict[str, Any]:
        """What determines the figures. A setting that came later counts where it says something."""
        later = {"conditions": CONDITIONS, "exact_rows": _EXACT_ROWS, "num_timed": 0}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    def searched(self) -> dict[str, Any]:
        """The part of the plan that says how a system is searched."""
        return {name: value for name, value in self.plan().items() if name == "exact_rows"}


def open_system(
    paths: SystemPaths, backbone: str, *, accept_stale: bool, device: str, retrieval: Retrieval | None = None
) -> "Retriever":
    """Open a system's artefacts, with its name in front of what is wrong with them.

    Raises:
        InputError: see `Retriever.open`.
    """
    from clara.retrieval.retriever import Retriever  # imports torch

    try:
        return Retriever.open(
            paths.checkpoint,
            paths.memory,
            paths.index or None,
            backbone=backbone,
            accept_stale=accept_stale,
            device=device,
            retrieval=retrieval,
        )
    except InputError as error:
        raise InputError(f"system {paths.name}: {error}") from error


def missing_documents(questions: Sequence[Question], retriever: "Retriever") -> Mapping[str, int]:
    """How many questions know no right document, and how many know some of which MEMORY has none."""
    unlabelled = sum(not q.positive_ids for q in questions)
    absent = sum(
        bool(q.positive_ids) and not any(retriever.store.rows_of(d) for d in q.positive_ids) for q in questions
    )
    return {"questions without known positives": unlabelled, "questions whose positives are not in MEMORY": absent}


def questions_hash(questions: Sequence[Question]) -> str:
    """Hash of what is asked: two evaluations with an equal one may be compared question by question."""
    # A field that came later counts where it says something: questions without hops hash as they did before hops were
    # kept.
    return hash_of([{k: v for k, v in asdict(q).items() if k != "positive_hops" or v} for q in questions])
