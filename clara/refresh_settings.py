"""Section `joint.refresh` of the configuration: how MEMORY stays true while the compressor trains."""

from typing import Literal

from pydantic import Field, model_validator

from clara.section import Section


class Refresh(Section):
    """Re-encoding of MEMORY beside training."""

    policy: Literal["none", "full"] = Field("none", description="none: MEMORY stays as it is; full: every row is encoded again")
    rerank: bool = Field(
        False,
        description="with any policy: a pool is found by stored memory and scored on memory encoded afresh with the compressor as it is, without "
        "gradient, wherever what is stored is older; costs N compressions a question",
    )
    start_step: int = Field(0, ge=0, description="the first snapshot is taken after this step")
    every_steps: int = Field(0, ge=0, description="steps from one snapshot to the next; 0: only the first")
    switch: Literal["asap", "fixed"] = Field(
        "asap", description="asap: the step after readiness; fixed: delta_steps after the snapshot, waiting if late"
    )
    delta_steps: int = Field(0, ge=0, description="for switch = fixed")
    num_cpus: float = Field(1.0, gt=0, description="cores for the worker that encodes")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU for it, under Ray; 0: it encodes on the CPU")
    max_attempts: int = Field(3, ge=1, description="tries at one snapshot before training stays on the version it has")
    max_staleness_steps: int = Field(
        0, ge=0, description="most updates of the compressor that the version in use may lack before when_stale applies; 0: any number"
    )
    when_stale: Literal["wait", "warn", "continue"] = Field(
        "warn",
        description="wait: for the refresh under way, wait_seconds at most; warn: say so once for each version; continue: only count",
    )
    keep_versions: int = Field(
        1, ge=0, description="versions before the one in use that are kept for rollback; the MEMORY that the run began with always is"
    )
    canary_every: int = Field(
        0, ge=0, description="steps between measurements of staleness: a fixed set of rows encoded afresh beside what is stored; 0: none"
    )
    canary_rows: int = Field(64, ge=2, description="rows of that set; half as many questions rank them")
    trigger_cosine: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a snapshot is taken when the set's mean cosine of stored and fresh memory is under it, from start_step on; 0: by steps "
        "alone. With it, steps count only where every_steps is set",
    )
    wait_seconds: float = Field(
        3600.0,
        ge=0,
        description="longest wait for a refresh: at a fixed switch (then it is given up), after the last step, and with when_stale = wait",
    )
    final: bool = Field(False, description="encode MEMORY once more after the last step, so that it fits the final CHECKPOINT exactly")

    @model_validator(mode="after")
    def _fixed(self) -> "Refresh":
        if self.policy == "full" and self.switch == "fixed" and not 1 <= self.delta_steps <= (self.every_steps or self.delta_steps):
            raise ValueError(
                f"refresh.delta_steps is {self.delta_steps}, every_steps {self.every_steps}: switch = 'fixed' switches delta_steps after a snapshot, "
                "at least 1 and no later than the next snapshot; set delta_steps between 1 and every_steps"
            )
        if self.max_staleness_steps and self.when_stale == "wait" and self.switch == "fixed":
            raise ValueError(
                "refresh.when_stale is 'wait', switch 'fixed': a fixed switch waits at its own step, and earlier would not be repeatable; "
                "set when_stale = 'warn' or switch = 'asap'"
            )
        if self.trigger_cosine and (self.policy == "none" or not self.canary_every):
            raise ValueError(
                f"refresh.trigger_cosine is {self.trigger_cosine}, policy {self.policy!r}, canary_every {self.canary_every}: a measured trigger "
                "needs a policy that encodes and a measurement; set policy and canary_every, or leave trigger_cosine at 0"
            )
        return self
