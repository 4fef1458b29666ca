"""A MEMORY version of a run, a refresh under way, and where their files are."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Version:
    """A MEMORY with its INDEX: paths, hashes, and the updates after which the snapshot that made it was taken."""

    number: int
    memory: str
    index: str
    memory_hash: str
    index_hash: str
    snapshot_step: int

    def staleness(self, step: int, compressor_updates: int) -> int:
        """Updates of the compressor that this version (its newest rows) lacks in a step (0-based)."""
        return max(0, min(step, compressor_updates) - self.snapshot_step)


@dataclass(frozen=True)
class Pending:
    """A refresh under way: its version, updates before its snapshot, and time of request (Unix; 0: unknown)."""

    number: int
    snapshot_step: int
    asked_at: float = 0.0


@dataclass(frozen=True)
class VersionPaths:
    """Files of version `number`: artefacts in the output, everything else in the run's own directory."""

    output: Path
    run: Path
    number: int

    @property
    def memory(self) -> Path:
        """Folder of the MEMORY."""
        return self.output / f"memory-v{self.number}"

    @property
    def index(self) -> Path:
        """Folder of the INDEX."""
        return self.output / f"index-v{self.number}"

    @property
    def snapshot(self) -> Path:
        """CHECKPOINT that encodes it."""
        return self.run / f"snapshot-v{self.number}"

    @property
    def selection(self) -> Path:
        """The `RowSelection` of an incremental refresh."""
        return self.run / f"selection-v{self.number}.json"

    @property
    def drift(self) -> Path:
        """Measured drift of rows."""
        return self.run / f"drift-v{self.number}.parquet"
