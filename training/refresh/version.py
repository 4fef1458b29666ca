"""What a MEMORY version of a run is, and after which updates the snapshot for the next one is taken."""

from dataclasses import dataclass

from clara.config.refresh import Refresh


@dataclass(frozen=True)
class Version:
    """A MEMORY with its INDEX: where they lie, their hashes, and after how many updates the compressor was that made it."""

    number: int
    memory: str
    index: str
    memory_hash: str
    index_hash: str
    snapshot_step: int


@dataclass(frozen=True)
class Pending:
    """A refresh under way: the version that it makes, the updates after which its snapshot was taken, and when (Unix time)."""

    number: int
    snapshot_step: int
    asked_at: float = 0.0


def snapshot_due(updates: int, settings: Refresh, cosine: float = 1.0) -> bool:
    """Whether a snapshot is taken after that many updates, where the canary set's mean cosine has just been measured as `cosine`."""
    if settings.policy == "none" or updates < settings.start_step:
        return False
    since = updates - settings.start_step
    by_steps = since % settings.every_steps == 0 if settings.every_steps else since == 0 and not settings.trigger_cosine
    return by_steps or cosine < settings.trigger_cosine
