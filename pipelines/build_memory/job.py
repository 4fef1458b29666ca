"""Makes a `MemoryJob` from the arguments: fingerprint, checks and settings."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clara.config.encoding import check_encoding
from clara.config.jobs import CorpusJob
from clara.data.records import NORMALISATION
from clara.errors import InputError
from clara.memory.fingerprint import EncodingSettings, Fingerprint, of_checkpoint, of_memory
from clara.memory.keys import DEFAULT_KEY_SIZE, key_projection
from clara.memory.mixed_versions import check_accepted
from clara.memory.shards import KIND
from clara.model.artefact import Checkpoint
from clara.storage.artefact import Artefact
from clara.storage.cache import cache_directory, local_folder
from clara.storage.manifest import hash_of
from clara.storage.paths import absolute, is_url, join
from pipelines.build_memory.outcome import MemoryJob
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.chunking import check_limits
from pipelines.corpus.filters import make_filters
from pipelines.corpus.near_duplicates import make_min_hash_settings
from pipelines.corpus.spill import SPILL
from pipelines.corpus.splits import Unit, describe
from pipelines.engines.gpu import gpu_hint
from pipelines.engines.names import LOCAL, SPARK
from pipelines.job.locks import LOCK

_LOG = logging.getLogger(__name__)


def inherit_from_update(args: argparse.Namespace, older: Artefact | None) -> argparse.Namespace:
    """The arguments with what an update inherits from the older MEMORY; without an update, with their defaults.

    Raises:
        InputError: `--update` is `--output`, or an argument differs from an inherited setting.
    """
    defaults = CorpusJob()
    old: dict[str, Any] = {name: getattr(defaults, name) for name in ("overlap_tokens", "key_seed", "codec")}
    old["dtype"] = args.config.backbone.dtype
    if older is not None:
        if absolute(args.update) == absolute(args.output):
            raise InputError(
                f"--output {args.output}: is the MEMORY of --update, which stays as it is; give another directory"
            )
        encoding = of_memory(older).encoding
        if encoding.normalisation != NORMALISATION:
            raise InputError(
                f"--update {args.update}: its texts were normalised by version {encoding.normalisation}, this program "
                f"has version {NORMALISATION}, which may give other chunks; build a MEMORY without --update"
            )
        old = asdict(encoding) | {name: older.manifest[name] for name in ("codec", "num_shards")}
    old.pop("normalisation", None)
    inherited = {}
    for name, value in old.items():
        given = getattr(args, name)
        given = None if given == "auto" else given
        if args.update and given not in (None, 0, value):
            flag = name.replace("_", "-")
            raise InputError(
                f"--{flag} {given}: {args.update} has {value}, which its new version keeps; leave --{flag} out, "
                "or build a MEMORY without --update"
            )
        if given is None or args.update:
            inherited[name] = value
    return argparse.Namespace(**{**vars(args), **inherited})


def resolve_fingerprint(args: argparse.Namespace, checkpoint: Checkpoint) -> Fingerprint:
    """The fingerprint of a MEMORY made from an open CHECKPOINT.

    Args:
        args: as returned by `inherit_from_update`.
        checkpoint: whose compressor makes it.

    Raises:
        InputError: the checkpoint, the backbone, the chunk limits or the key size are not valid.
    """
    settings = checkpoint.manifest["model"]
    max_tokens = args.max_tokens or settings["max_document_tokens"]
    if settings.get("cut_inputs") and max_tokens > settings["max_document_tokens"]:
        raise InputError(
            f"--max-tokens {max_tokens}: this checkpoint cuts texts at {settings['max_document_tokens']} tokens, "
            f"as the reference that it comes from does; give at most {settings['max_document_tokens']}"
        )
    check_limits(max_tokens, args.overlap_tokens)

    encoding = EncodingSettings(
        max_tokens, args.overlap_tokens, args.key_size or DEFAULT_KEY_SIZE, args.key_seed, args.dtype
    )
    found = of_checkpoint(checkpoint, encoding, backbone=args.backbone)
    check_trained_for(args, max_tokens, checkpoint)
    if not args.key_size:
        found = replace(found, key_size=min(DEFAULT_KEY_SIZE, found.num_memory_tokens * found.hidden_size))
    check_encoding(found.dtype, args.device)
    key_projection(found.num_memory_tokens, found.hidden_size, found.key_size, found.key_seed)
    return found


def check_trained_for(args: argparse.Namespace, max_tokens: int, checkpoint: Checkpoint) -> None:
    """Warn if chunks may be longer than those that the checkpoint was trained with.

    Raises:
        InputError: a chunk with marker, bos, eos and memory tokens may exceed the positions of the backbone.
    """
    settings = checkpoint.manifest["model"]
    trained, num_memory_tokens = settings["max_document_tokens"], settings["num_memory_tokens"]
    if max_tokens <= trained:
        return
    from transformers import AutoConfig  # takes a second, and is rarely needed

    folder = local_folder(checkpoint.backbone_folder(args.backbone))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    positions = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)
    room = positions - num_memory_tokens - 3
    if positions and max_tokens > room:
        raise InputError(
            f"--max-tokens {max_tokens}: the backbone has {positions} positions (max_position_embeddings), "
            f"of which {num_memory_tokens} memory tokens and up to 3 special ones need theirs; "
            f"give at most {room}, or better {trained}, which the checkpoint was trained with"
        )
    _LOG.warning(
        "--max-tokens %d: the checkpoint was trained with at most %d tokens a chunk (max_document_tokens)",
        max_tokens,
        trained,
    )


def make_job(args: argparse.Namespace, units: Sequence[Unit]) -> MemoryJob:
    """The job of these arguments.

    Raises:
        InputError: a value is out of range, or as raised by `resolve_fingerprint`.
    """
    filters = make_filters(args.min_characters, args.max_characters, args.language, args.max_symbol_ratio)
    min_hash = make_min_hash_settings(args.near_duplicates)
    fields = given_fields(args)
    checkpoint = Checkpoint.open(args.checkpoint)
    older = Artefact.open(args.update, KIND, lazy=True) if args.update else None
    args = inherit_from_update(args, older)
    fingerprint = resolve_fingerprint(args, checkpoint)
    if older is not None:
        check_accepted([fingerprint], older.manifest, f"--update {args.update}")
    recipe = {
        "job": "build_memory",
        "input": describe(units),
        "format": args.format,
        "fields": vars(fields),
        "fingerprint": fingerprint.as_dict(),
        "num_shards": args.num_shards,
        "codec": args.codec,
        "batch_tokens": args.batch_tokens,
        "limit": args.limit,
        "device": args.device,
    }
    if filters.settings():  # a recipe without filters has no such key
        recipe["filters"] = filters.settings()
    if min_hash:
        recipe["near_duplicates"] = min_hash.threshold
    if older is not None:
        recipe["update"] = older.hash
    return MemoryJob(
        output=absolute(args.output),
        checkpoint=absolute(args.checkpoint),
        backbone=absolute(args.backbone) if args.backbone else "",
        device=args.device,
        fingerprint=fingerprint,
        fields=fields,
        num_shards=args.num_shards,
        codec=args.codec,
        batch_tokens=args.batch_tokens,
        limit=args.limit,
        max_failures=args.max_failures,
        recipe=recipe,
        filters=filters,
        min_hash=min_hash,
        update=absolute(args.update) if args.update else "",
        spill=spill_folder(args) if args.runner == LOCAL else "",
        accelerator=gpu_hint(args.gpu_type, args.gpu_count, runner=args.runner, device=args.device),
        sees=join(absolute(args.output), LOCK) if args.runner == SPARK and not is_url(args.output) else "",
    )


def spill_folder(args: argparse.Namespace) -> str:
    """The folder to which the local run spills chunks: on this machine, even if the MEMORY is written to a URL.

    Raises:
        InputError: a URL was given.
    """
    if is_url(args.spill):
        raise InputError(
            f"--spill {args.spill}: a URL; spilled records are read and written all the time, "
            "so give a directory of this machine"
        )
    if not args.spill and is_url(args.output):
        return str(cache_directory() / "spill" / hash_of(absolute(args.output)))
    return absolute(args.spill or Path(args.output) / SPILL)
