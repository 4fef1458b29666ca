"""The scoring job: its settings, its recipe and its questions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clara.config.model import SOURCE_SETTINGS, FeatureName
from clara.config.tree import Retrieval
from clara.data.questions import Question, fold_of, of_many_targets, read_questions, shuffled_answers
from clara.data.utilities import KIND
from clara.errors import InputError
from clara.index.dense_model import model_hash
from clara.memory.identity import memory_identity
from clara.storage.manifest import hash_of, manifest_hash, read_manifest


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
    sources: Mapping[FeatureName, int]
    positives: bool
    published: bool
    seed: int
    retrieval: Retrieval = field(default_factory=Retrieval)
    fold: float = 0.0
    limit: int = 0
    reuse: str = ""
    shuffle_answers: bool = False

    def recipe(self) -> dict[str, Any]:
        """What determines the numbers, up to the last bits of a MEMORY that is built again."""
        inputs = {
            "questions": manifest_hash(self.questions),
            "checkpoint": manifest_hash(self.checkpoint),
            "memory": memory_identity(self.memory),
        }
        if self.index:
            manifest = read_manifest(self.index, "INDEX")
            inputs["index"] = hash_of([manifest["factory"], manifest["score"]])
        settings = ("split", "pool_size", "positives", "published", "seed", "device")
        found = {"job": "score_utilities", "inputs": inputs, **{name: getattr(self, name) for name in settings}}
        for name, count in self.sources.items():
            if name in ("memory", "bm25") or (count and not self.published):
                found[SOURCE_SETTINGS[name]] = count
        if self.sources["dense"] and not self.published:
            found["dense_model"] = model_hash(self.retrieval)
        if self.sources["memory"] and not self.published and self.retrieval.exact_rows != Retrieval().exact_rows:
            found["exact_rows"] = self.retrieval.exact_rows
        if self.fold:
            found["fold"] = self.fold
        if self.limit:
            found["limit"] = {"questions": self.limit, "of": "many targets"}
        if self.shuffle_answers:
            found["shuffle_answers"] = True
        return found


def questions_of(job: ScoringJob) -> list[Question]:
    """The questions that are scored, in the order of their ids.

    Raises:
        InputError: no question is left to score.
    """
    questions = sorted(read_questions(job.questions, job.split or None), key=lambda q: q.question_id)
    if job.fold:
        questions, _ = fold_of(questions, job.fold)
        if not questions:
            raise InputError(f"--fold {job.fold:g}: no question of {job.questions} is in it; raise it")
    questions = of_many_targets(questions, job.limit) if job.limit else questions
    if job.shuffle_answers:
        order = np.random.default_rng(job.seed).permutation(len(questions)).tolist()
        questions = shuffled_answers(questions, order)
    return questions


def check_reuse(job: ScoringJob, recipe: dict[str, Any]) -> None:
    """Refuse UTILITIES to reuse whose numbers are not those that this job would find.

    Raises:
        InputError: there are none, they were scored with other settings, or answers are shuffled.
    """
    if not job.reuse:
        return
    if job.shuffle_answers:
        raise InputError(
            "--reuse with --shuffle-answers: answers are shuffled among the chosen questions; leave it out"
        )
    theirs = read_manifest(job.reuse, KIND)["made_by"]["recipe"]
    chosen = {"split", "fold", "limit"}  # which questions there are, and not what is found for them
    for name in sorted({*theirs, *recipe} - chosen):
        if theirs.get(name) != recipe.get(name):
            raise InputError(
                f"--reuse {job.reuse}: was scored with another {name}: {theirs.get(name)}, here it is "
                f"{recipe.get(name)}; give UTILITIES of the same settings, or leave the option out"
            )
