"""MEMORY whose shards several versions of one compressor made, as an incremental refresh leaves it beside training.

Its manifest names in `shard_fingerprints` what made each shard that is not of the newest version; so each row's version
is known by its shard. Training accepts the versions of this run. All other readers accept MEMORY of one compressor
only.
"""

from collections.abc import Collection, Mapping
from typing import Any

from clara.errors import InputError
from clara.memory.fingerprint import Accepted, Fingerprint, check, hash_of_accepted

FIELD = "shard_fingerprints"
_SHOWN_DIGITS = 16


def shard_fingerprints(manifest: Mapping[str, Any], where: str) -> list[Fingerprint]:
    """What made each shard of a MEMORY, overlays after base shards, in the order of its manifest.

    Raises:
        InputError: fields are missing or unknown.
    """
    newest = Fingerprint.from_dict(manifest.get("fingerprint_fields", {}), f"{where}/manifest.json fingerprint_fields")
    others = {
        name: Fingerprint.from_dict(fields, f"{where}/manifest.json {FIELD}.{name}")
        for name, fields in manifest.get(FIELD, {}).items()
    }
    return [others.get(name, newest) for name in (*manifest["shards"], *manifest["overlays"])]


def is_mixed(manifest: Mapping[str, Any]) -> bool:
    """Whether it has shards of several versions."""
    return bool(manifest.get(FIELD))


def refuse_mixed(manifest: Mapping[str, Any], where: str, accept: Collection[Accepted] = ()) -> None:
    """Refuse a MEMORY of several versions of which not every one is accepted; one of a single version passes.

    Raises:
        InputError: it is mixed; says how it came about, and what to do.
    """
    if not is_mixed(manifest):
        return
    found: dict[str, list[str]] = {}
    for name, fingerprint in zip(
        (*manifest["shards"], *manifest["overlays"]), shard_fingerprints(manifest, where), strict=True
    ):
        found.setdefault(fingerprint.hash, []).append(name)
    known = {hash_of_accepted(accepted) for accepted in accept}
    if found.keys() <= known:
        return
    parts = "; ".join(
        f"{len(names)} {'shard' if len(names) == 1 else 'shards'} of {made[:_SHOWN_DIGITS]}…"
        + ("" if made in known else " (not accepted)" if known else "")
        for made, names in sorted(found.items())
    )
    raise InputError(
        f"{where}: a mixed MEMORY, whose rows {len(found)} versions of a compressor made ({parts}), "
        "as joint training with "
        "joint.refresh.policy = 'incremental' leaves it; only the run that made it reads it. Encode it whole: "
        "set joint.refresh.final = true in that run, or build a MEMORY with pipelines.build_memory and the CHECKPOINT"
    )


def check_accepted(accept: Collection[Accepted], manifest: Mapping[str, Any], where: str) -> None:
    """Refuse a MEMORY with a shard of a fingerprint that is not accepted.

    Raises:
        InputError: there is one; the message prints both sides.
    """
    refuse_mixed(manifest, where, accept)
    check(accept, manifest["fingerprint_fields"], where)
