"""Refresh policies: when MEMORY is encoded again, which rows, and whether versions mix rows of several snapshots.

A new policy is a subclass of `RefreshPolicy`, an entry in `POLICIES`, and its name in the type of
`clara.config.refresh.Refresh.policy`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clara.config.refresh import Refresh
from training.refresh.working_set import RowSelection, UpcomingCandidates


class RefreshPolicy:
    """Policy `none`: MEMORY stays as it is. The base of the other policies.

    Attributes:
        makes_versions: refreshes during training make new versions of MEMORY.
        mixes_versions: a version holds rows of several snapshots, because a refresh encodes selected rows only.
    """

    makes_versions = False
    mixes_versions = False

    def __init__(self, settings: Refresh) -> None:
        self.settings = settings

    @property
    def num_workers(self) -> int:
        """Processes that share one refresh."""
        return 1

    def due(self, updates: int, cosine: float = 1.0) -> bool:
        """Whether a snapshot is taken, and its refresh started.

        Args:
            updates: optimiser updates made so far.
            cosine: mean cosine of stored and fresh memory of the canary set, if it has just been measured; else 1.
        """
        return False

    def select_rows(
        self,
        memory_rows: int,
        seen: Counter[int],
        upcoming: UpcomingCandidates,
        *,
        steps: Mapping[str, int],
        drift: Path | None,
    ) -> RowSelection | None:
        """By what the rows of a refresh are selected; None: it encodes all rows.

        Args:
            memory_rows: rows of MEMORY.
            seen: rows that were candidates since the last snapshot, with the number of times.
            upcoming: what the next steps will use.
            steps: by fingerprint, the updates after which its snapshot was taken.
            drift: file with the measured drift of rows; None: there is none.
        """
        return None


class FullRefresh(RefreshPolicy):
    """Policy `full`: every row is encoded again."""

    makes_versions = True

    @property
    def num_workers(self) -> int:
        """See the base class."""
        return self.settings.num_workers

    def due(self, updates: int, cosine: float = 1.0) -> bool:
        """By a schedule of steps, or below a measured cosine, from `start_step` on."""
        settings = self.settings
        since = updates - settings.start_step
        if since < 0:
            return False
        if settings.every_steps:
            by_steps = since % settings.every_steps == 0
        else:
            by_steps = since == 0 and not settings.trigger_cosine
        return by_steps or cosine < settings.trigger_cosine


class IncrementalRefresh(FullRefresh):
    """Policy `incremental`: selected rows are encoded again, into overlay shards."""

    mixes_versions = True

    @property
    def num_workers(self) -> int:
        """One: the selection is small."""
        return 1

    def select_rows(
        self,
        memory_rows: int,
        seen: Counter[int],
        upcoming: UpcomingCandidates,
        *,
        steps: Mapping[str, int],
        drift: Path | None,
    ) -> RowSelection:
        """See the base class."""
        uses = seen + Counter(upcoming.rows)
        return RowSelection(
            num_rows=self.settings.num_rows(memory_rows),
            oldest_share=self.settings.oldest_share,
            row_ids=list(uses),
            uses=list(uses.values()),
            questions=list(upcoming.questions),
            per_question=upcoming.per_question,
            steps=dict(steps),
            drift=str(drift or ""),
        )


POLICIES: Mapping[str, type[RefreshPolicy]] = {
    "none": RefreshPolicy,
    "full": FullRefresh,
    "incremental": IncrementalRefresh,
}


def policy_of(settings: Refresh) -> RefreshPolicy:
    """The policy that `joint.refresh.policy` names."""
    return POLICIES[settings.policy](settings)
