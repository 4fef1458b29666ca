"""What a MEMORY holds, whatever its bytes: the same for the corpus encoded again, on any machine, in other shards.

Two encodings by one compressor differ in the last bits, so their manifests' hashes differ. What was computed from the
one, such as UTILITIES, holds for the other.
"""

import hashlib
from collections import defaultdict

import numpy as np

from clara.arrays import Ids
from clara.errors import InputError
from clara.memory.shards import KIND
from clara.memory.store import MemoryStore
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of, manifest_hash
from clara.storage.paths import Name


def memory_identity(source: Name | Artefact) -> str:
    """Hash of the codec and of the live row ids by the fingerprint of their vectors. Reads all row ids.

    Raises:
        InputError: no finished MEMORY there, or a damaged one.
    """
    store = MemoryStore(Artefact.open(source, KIND, lazy=True))  # of a URL only the records are fetched
    rows: dict[str, list[Ids]] = defaultdict(list)
    for (_, ids), fingerprint in zip(store.iter_shards(), store.shard_fingerprints, strict=True):
        rows[fingerprint.hash].append(ids)
    digests = {
        made: hashlib.sha256(np.sort(np.concatenate(ids)).astype("<i8").tobytes()).hexdigest()
        for made, ids in rows.items()
        if any(map(len, ids))
    }
    return hash_of({"codec": store.codec, "rows": digests})


def check_same_memory(recorded: str, memory: Name, where: str) -> None:
    """Refuse what was computed from another MEMORY.

    Args:
        recorded: identity of the MEMORY it was computed from; in artefacts from before identities, its manifest's hash.
        memory: MEMORY at hand.
        where: names what was computed.

    Raises:
        InputError: `memory` has another identity than the recorded one.
    """
    if recorded != manifest_hash(memory) and recorded != (found := memory_identity(memory)):
        raise InputError(
            f"{where} were scored with MEMORY {recorded[:12]}, this run has {found[:12]}: another fingerprint or "
            "codec, or other rows; score them again (python -m pipelines.score_utilities)"
        )
