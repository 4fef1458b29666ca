"""What a refresh is made from: a snapshot of the model, the selection of rows, and the job that names them."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from clara.config.roles import ROLES
from clara.config.tree import Config
from clara.errors import InputError
from clara.index.versions import next_settings
from clara.model.checkpoint import save_checkpoint
from clara.model.model import ClaraModel
from training.refresh.job import RefreshJob
from training.refresh.version import Version, VersionPaths
from training.refresh.working_set import RowSelection


def stored_parameters(model: ClaraModel, store_backbone: bool) -> list[nn.Parameter]:
    """The parameters that a CHECKPOINT holds."""
    parts = [*ROLES, "memory_tokens", "question_mean", *["backbone"] * store_backbone]
    return [p for part in parts for p in model.role_parameters(part)]


class RefreshRequests:
    """Writes what refreshes of a run read, and describes them as jobs."""

    def __init__(self, config: Config, output: Path, run: Path, threads: int) -> None:
        self._config, self._output, self._run, self._threads = config, output, run, threads

    def paths(self, number: int) -> VersionPaths:
        """Files of a version."""
        return VersionPaths(self._output, self._run, number)

    def save_snapshot(self, number: int, model: ClaraModel, updates: int, *, store_backbone: bool) -> str:
        """Write the snapshot of a version. Returns why that failed, or "": a full disk must not end training."""
        recipe = {"snapshot_after_step": updates}
        return _reason_of_failure(
            lambda: save_checkpoint(
                model, self.paths(number).snapshot, stage="joint", recipe=recipe, store_backbone=store_backbone
            )
        )

    def save_selection(self, number: int, selection: RowSelection) -> str:
        """Write by what a version's rows are selected. Returns why it could not be written, or ""."""
        return _reason_of_failure(lambda: selection.save(self.paths(number).selection))

    def job(
        self,
        number: int,
        current: Version,
        snapshot_step: int,
        *,
        incremental: bool = False,
        checkpoint: Path | None = None,
    ) -> RefreshJob:
        """The refresh that makes a version.

        Args:
            number: of the version.
            current: the version whose rows are encoded again.
            snapshot_step: updates of the compressor that encodes them.
            incremental: only selected rows; the others are carried over.
            checkpoint: what encodes them; None: the version's snapshot.
        """
        paths, config = self.paths(number), self._config
        refresh = config.joint.refresh
        return RefreshJob(
            checkpoint=str(checkpoint or paths.snapshot),
            backbone=config.backbone.path,
            parent=current.memory,
            memory=str(paths.memory),
            index=str(paths.index),
            **next_settings(current.index, config.retrieval.factory),
            first_level=config.retrieval.first_level,
            exact_rows=config.retrieval.exact_rows,
            batch_tokens=config.corpus_job.batch_tokens,
            threads=self._threads,
            device="cuda" if refresh.num_gpus else "cpu",
            snapshot_step=snapshot_step,
            selection=str(paths.selection) if incremental else "",
            parent_index=current.index if incremental else "",
            words=config.index_job.words,
            parts_index=current.index,
            drift=str(paths.drift) if incremental else "",
        )


def _reason_of_failure(write: Callable[[], object]) -> str:
    try:
        write()
    except (InputError, OSError) as error:
        return str(error)
    return ""
