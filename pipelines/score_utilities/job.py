"""The scoring job: its settings, its recipe and its questions."""

from dataclasses import dataclass
from typing import Any

from clara.data.questions import Question, read_questions
from clara.index.model_folder import folder_hash
from clara.storage.manifest import manifest_hash


@dataclass(frozen=True)
class ScoringJob:
    """What the workers need to know. See the command's arguments."""

    questions: str
    split: str
    checkpoint: str
    memory: str
    index: str
    backbone: str
    output: str
    device: str
    pool_size: int
    from_index: int
    from_bm25: int
    positives: bool
    published: bool
    seed: int
    from_dense: int = 0
    dense_model: str = ""

    def recipe(self) -> dict[str, Any]:
        """What determines the numbers."""
        inputs = {
            name: manifest_hash(path)
            for name in ("questions", "checkpoint", "memory", "index")
            if (path := getattr(self, name))
        }
        settings = ("split", "pool_size", "from_index", "from_bm25", "positives", "published", "seed", "device")
        found = {"job": "score_utilities", "inputs": inputs, **{name: getattr(self, name) for name in settings}}
        if self.from_dense and not self.published:
            found |= {"from_dense": self.from_dense, "dense_model": folder_hash(self.dense_model)}
        return found


def questions_of(job: ScoringJob) -> list[Question]:
    """The questions that are scored, in the order of their ids.

    Raises:
        InputError: there is none.
    """
    return sorted(read_questions(job.questions, job.split or None), key=lambda q: q.question_id)
