"""How an INDEX is built, and what of that determines it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clara.config.model import Score
from clara.config.tree import Retrieval
from clara.index.factory import resolve_factory
from clara.index.keys import IndexKeys
from clara.index.recall import RECALL_FLOOR, Measurement
from clara.index.tokens import TOKENISER
from clara.model.array_geometry import PUBLISHED
from clara.storage.artefact import Artefact

if TYPE_CHECKING:
    from clara.index.dense import BlockWorkers
    from clara.index.dense_model import Encoder

_DEFAULTS = Retrieval()


@dataclass(frozen=True)
class Build:
    """How an INDEX is built and what is asked of it.

    Attributes:
        factory: FAISS factory string, or `auto`.
        seed: draws the training sample and what recall is measured with.
        probes: inverted lists that a query looks into; 0: a sixteenth of them, 8 at least.
        measurement: of recall.
        recall_floor: a lower recall is warned of.
        strict_recall: it is refused instead.
        gpu: k-means and the assignment to lists run on a CUDA device.
        verify: read every byte of the MEMORY against its sha256 before.
        parent: INDEX of an earlier version, from which the training and unchanged rows are reused; None: none.
        words: write the words part, which BM25 searches.
        dense: model whose vectors of all rows are written; None: none, but for those of `parts_from`.
        dense_workers: compute these vectors; None: this process does.
        parts_from: INDEX whose words and dense vectors are linked where its rows are the same; None: the parent.
        progress: show bars.
        mixed: take a MEMORY of several versions too, within a joint run.
        score: by which the rows are searched.
        exact_rows: a MEMORY of at most so many rows is searched exactly, and measured so.
    """

    factory: str = "auto"
    seed: int = 0
    probes: int = 0
    measurement: Measurement = field(default_factory=lambda: Measurement(_DEFAULTS.first_level))
    recall_floor: float = RECALL_FLOOR
    strict_recall: bool = False
    gpu: bool = False
    verify: bool = False
    parent: Artefact | None = None
    words: bool = True
    dense: "Encoder | None" = None
    dense_workers: "BlockWorkers | None" = None
    parts_from: Artefact | None = None
    progress: bool = False
    mixed: bool = False
    score: Score = PUBLISHED
    exact_rows: int = 0


def recipe_of(keys: IndexKeys, how: Build) -> dict[str, Any]:
    """What determines an INDEX."""
    measurement, num_rows = how.measurement, len(keys)
    dense = how.dense.hash if how.dense is not None else ""
    return {
        "memory": keys.store.hash,
        "factory": resolve_factory(how.factory, num_rows, keys.size, keys.flat),
        "seed": how.seed,
        "probes": how.probes,
        "measurement": [measurement.first_level, measurement.num_queries, measurement.noise, measurement.most_bytes],
        "parent": how.parent.hash if how.parent else "",
        "words": TOKENISER if how.words else 0,
        **({"dense": dense} if dense else {}),
        **keys.recipe,
        **({"exact": True} if num_rows <= how.exact_rows else {}),
    }
