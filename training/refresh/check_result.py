"""The check of a finished refresh before training switches to it."""

import numpy as np

from clara.errors import InputError
from clara.index.search import MemoryIndex
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.storage.manifest import manifest_hash
from training.refresh.job import RefreshError, RefreshJob, RefreshResult, expected_fingerprint


def check_result(job: RefreshJob, result: RefreshResult) -> None:
    """Refuse to switch to what is not what the job was to make. Every byte was read back by the job itself.

    Raises:
        RefreshError: manifest, size, fingerprint or rows are not right; the message says which.
    """
    try:
        parent = MemoryStore.open(job.parent, mixed=True)
        fingerprint = expected_fingerprint(job.checkpoint, job.backbone, parent.fingerprint_fields)
        store = MemoryStore.open(
            job.memory, accept=[fingerprint, *(parent.shard_fingerprints if job.selection else [])]
        )
        MemoryIndex.open(job.index, store, Checkpoint.open(job.checkpoint, lazy=True).settings.score)
    except InputError as error:
        raise RefreshError(str(error)) from error
    for folder, wanted in ((job.memory, result.memory_hash), (job.index, result.index_hash)):
        if (found := manifest_hash(folder)) != wanted:
            raise RefreshError(
                f"{folder}: its manifest hash is {found[:16]}, the refresh made {wanted[:16]}; something else wrote "
                "there"
            )
    if not np.array_equal(store.row_ids, parent.row_ids):
        raise RefreshError(f"{job.memory}: its rows are not those of {job.parent}")
