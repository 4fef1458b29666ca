"""Stage `joint` on utilities scored beforehand: only the query reasoner trains, at the price of its passes alone.

See `pipelines/score_utilities`. The numbers are valid while compressor and generator do not train, so both must not.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch

from clara.config.tree import Config
from clara.data.questions import Question
from clara.data.utilities import KIND, Scored, read_utilities, reader_hash
from clara.errors import InputError
from clara.memory.identity import check_same_memory
from clara.model.joint_batch import JointBatch
from clara.model.model import ClaraModel
from clara.storage.manifest import read_manifest
from training.refresh.versions import Versions
from training.stages.candidates import generator
from training.stages.joint_stage import JointStage

logger = logging.getLogger(__name__)


def check_scored(config: Config) -> None:
    """Refuse a run that scored utilities don't fit.

    Raises:
        InputError: they were scored with another MEMORY or generator, something that they depend on would train, or no
            loss uses them.
    """
    joint, path = config.joint, config.utilities
    manifest = read_manifest(path, KIND)
    reasons = {
        "joint.train_generator is true": joint.train_generator,
        "joint.train_compressor is true": joint.train_compressor,
        "joint.utility_weight is 0": joint.utility_weight == 0,
        "joint.shuffle_answers is true (they were scored with each question's own answers)": joint.shuffle_answers,
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise InputError(
                f"utilities {path!r} were scored beforehand, and {reason}; change that, or leave utilities empty"
            )
    check_same_memory(manifest["memory"], config.memory, f"utilities {path!r}")
    found, wanted = manifest["reader"], reader_hash(config.checkpoint)
    if found != wanted:
        raise InputError(
            f"utilities {path!r} were scored with generator {found[:12]}, this run has {wanted[:12]}; score them again "
            "(python -m pipelines.score_utilities)"
        )


class ScoredStage(JointStage):
    """Pools and utilities from UTILITIES; everything else is the joint stage's."""

    def __init__(
        self, model: ClaraModel, questions: list[Question], config: Config, versions: Versions, **others: Any
    ) -> None:
        """Keep the questions that have utilities.

        Args:
            model: see `JointStage`.
            questions: of the training split; those that were not scored are left out, and counted in the log.
            config: the root, with `utilities`.
            versions: see `JointStage`.
            others: see `JointStage`.

        Raises:
            InputError: none of the questions was scored, or see `check_scored`.
        """
        check_scored(config)
        self._scored = read_utilities(config.utilities)
        chosen = [q for q in questions if q.question_id in self._scored]
        if not chosen:
            raise InputError(
                f"utilities {config.utilities!r}: none of the {len(questions)} training questions was scored; give "
                "those of these questions"
            )
        if len(chosen) < len(questions):
            logger.warning(
                "utilities: %d of %d training questions were not scored and are left out",
                len(questions) - len(chosen),
                len(questions),
            )
        scored = [self._scored[question.question_id] for question in chosen]
        super().__init__(model, chosen, config, versions, scored=scored, **others)

    def _pools(
        self, step: int, chosen: list[int], positions: list[int]
    ) -> tuple[list[list[int]], Sequence[Sequence[int]]]:
        """See the base class. Of a pool with more than N rows, N are drawn again in each step."""
        of_step = [list(self._drawn(step, position, question).row_ids) for position, question in enumerate(chosen)]
        return [of_step[position] for position in positions], of_step

    def _batch(self, step: int, positions: list[int], questions: list[int], pools: list[list[int]]) -> JointBatch:
        batch = super()._batch(step, positions, questions, pools)
        device, utilities_BN = batch.memory.device, torch.zeros(batch.valid.shape)
        drawn = [self._drawn(step, *of) for of in zip(positions, questions, strict=True)]
        for row, one in enumerate(drawn):
            utilities_BN[row, : len(one.log_likelihoods)] = torch.tensor(one.log_likelihoods)
        without_B = torch.tensor([one.without for one in drawn], device=device)
        return dataclasses.replace(batch, utilities=utilities_BN.to(device), without=without_B)

    def _drawn(self, step: int, position: int, question: int) -> Scored:
        """A question's pool in a step: all of it, or N of its rows."""
        scored, size = self._scored[self.pools.questions[question].question_id], self._settings.num_candidates
        if len(scored.row_ids) <= size:
            return scored
        order = torch.randperm(len(scored.row_ids), generator=generator(self._config.seed, step, position))[
            :size
        ].tolist()
        rows, nats = (tuple(values[i] for i in order) for values in (scored.row_ids, scored.log_likelihoods))
        return dataclasses.replace(scored, row_ids=rows, log_likelihoods=nats)
