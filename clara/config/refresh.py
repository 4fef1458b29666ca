"""Section `joint.refresh` of the configuration: how MEMORY stays true while the compressor trains."""

from typing import Literal

from pydantic import Field, model_validator

from clara.config.section import Section

YEAR_SECONDS = 31_536_000
"""The longest of waits: clocks of other libraries overflow at more."""


class Refresh(Section):
    """Re-encoding of MEMORY beside training."""

    policy: Literal["none", "full", "incremental"] = Field(
        "none",
        description="none: MEMORY stays as it is; full: every row is encoded again; incremental: chosen rows are, "
        "into overlays, so that a version "
        "mixes rows of several snapshots",
    )
    rows: int = Field(0, ge=0, description="incremental: rows of one refresh; 0: by share")
    share: float = Field(
        0.1, gt=0, le=1, description="incremental: rows of one refresh as a share of MEMORY, where rows is 0"
    )
    oldest_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="incremental: share of those rows that goes to the oldest ones, used or not: "
        "after rows of MEMORY / (share of them) refreshes "
        "every row has had its turn. The rest goes to candidates of recent and coming steps, by uses and drift",
    )
    look_ahead_steps: int = Field(
        50, ge=0, description="incremental: coming steps whose questions' candidates count as used"
    )
    rerank: bool = Field(
        False,
        description="with any policy: a pool is found by stored memory and scored on memory encoded afresh with the "
        "compressor as it is, without "
        "gradient, wherever what is stored is older; costs N compressions a question",
    )
    rerank_lag_steps: int = Field(
        0,
        ge=0,
        description="with rerank: rows are encoded afresh whose stored memory lacks more updates than this; "
        "the others as they are stored",
    )
    start_step: int = Field(0, ge=0, description="the first snapshot is taken after this step")
    every_steps: int = Field(0, ge=0, description="steps from one snapshot to the next; 0: only the first")
    switch: Literal["asap", "fixed", "stop"] = Field(
        "asap",
        description="asap: the step after readiness; fixed: delta_steps after the snapshot, waiting if late; stop: "
        "training waits at the snapshot for the new version (for comparisons; wait_seconds at most, then as asap)",
    )
    delta_steps: int = Field(0, ge=0, description="for switch = fixed")
    num_workers: int = Field(
        1,
        ge=1,
        description="processes that share a whole encoding, shard by shard, under Ray; "
        "an incremental refresh is made by one",
    )
    num_cpus: float = Field(1.0, gt=0, description="cores for each of them")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU for each, under Ray; 0: it encodes on the CPU")
    max_attempts: int = Field(3, ge=1, description="tries at one snapshot before training stays on the version it has")
    max_seconds: float = Field(
        86_400.0,
        gt=0,
        le=YEAR_SECONDS,
        description="longest time of one try, finding room under Ray included; one that hangs is ended, "
        "and counts as failed",
    )
    max_staleness_steps: int = Field(
        0,
        ge=0,
        description="most updates of the compressor that the version in use (under incremental: its newest rows) "
        "may lack before when_stale "
        "applies; 0: any number",
    )
    when_stale: Literal["wait", "warn", "continue"] = Field(
        "warn",
        description="wait: for the refresh under way, wait_seconds at most; warn: say so once for each version; "
        "continue: only count",
    )
    keep_versions: int = Field(
        1,
        ge=0,
        description="versions before the one in use that are kept for rollback; "
        "the MEMORY that the run began with always is",
    )
    canary_every: int = Field(
        0,
        ge=0,
        description="steps between measurements of staleness: a fixed set of rows encoded afresh beside what is "
        "stored; 0: none",
    )
    canary_rows: int = Field(64, ge=2, description="rows of that set; half as many questions rank them")
    trigger_cosine: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a snapshot is taken when the set's mean cosine of stored and fresh memory is under it, "
        "from start_step on; 0: by steps "
        "alone. With it, steps count only where every_steps is set",
    )
    wait_seconds: float = Field(
        3600.0,
        ge=0,
        le=YEAR_SECONDS,
        description="longest wait for a refresh: at a fixed switch (then it is given up), under switch = stop, "
        "after the last step (not where "
        "final encodes everything anyway), and with when_stale = wait",
    )
    final: bool = Field(
        False,
        description="encode MEMORY once more after the last step, so that it fits the final CHECKPOINT exactly; "
        "by the same worker, in as many tries",
    )

    @property
    def threads(self) -> int:
        """Torch threads of the worker that encodes beside training."""
        return max(1, int(self.num_cpus))

    def num_rows(self, of: int) -> int:
        """Rows of one incremental refresh of a MEMORY with that many."""
        return min(of, self.rows or max(1, round(self.share * of)))

    @model_validator(mode="after")
    def _fixed(self) -> "Refresh":
        if (
            self.policy != "none"
            and self.switch == "fixed"
            and not 1 <= self.delta_steps <= (self.every_steps or self.delta_steps)
        ):
            raise ValueError(
                f"refresh.delta_steps is {self.delta_steps}, every_steps {self.every_steps}: "
                "switch = 'fixed' switches delta_steps after a snapshot, "
                "at least 1 and no later than the next snapshot; set delta_steps between 1 and every_steps"
            )
        if self.max_staleness_steps and self.when_stale == "wait" and self.switch == "fixed":
            raise ValueError(
                "refresh.when_stale is 'wait', switch 'fixed': a fixed switch waits at its own step, "
                "and earlier would not be repeatable; "
                "set when_stale = 'warn' or switch = 'asap'"
            )
        if self.trigger_cosine and (self.policy == "none" or not self.canary_every):
            raise ValueError(
                f"refresh.trigger_cosine is {self.trigger_cosine}, policy {self.policy!r}, "
                f"canary_every {self.canary_every}: a measured trigger "
                "needs a policy that encodes and a measurement; set policy and canary_every, "
                "or leave trigger_cosine at 0"
            )
        return self
