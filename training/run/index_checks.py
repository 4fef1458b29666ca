"""Checks of a joint run that open its MEMORY and INDEX: what would fail only at the first refresh."""

import logging

import torch

from clara.config.tree import Config
from clara.errors import InputError
from clara.index.factory import check_trainable, empty_index
from clara.index.ivf_file import is_mapped
from clara.index.keys import IndexKeys
from clara.index.search import FILE
from clara.index.search import KIND as INDEX
from clara.index.share import not_shared, why_whole
from clara.index.versions import next_settings
from clara.storage.manifest import read_manifest
from training.run.checks import encodes_again

logger = logging.getLogger(__name__)


def check_index(config: Config, keys: IndexKeys) -> None:
    """Refuse kinds of INDEX that search servers cannot hold; without servers, warn of one that each rank reads whole.

    Args:
        config: the root.
        keys: of the MEMORY that the run begins with, under the score of its CHECKPOINT.

    Raises:
        InputError: the kind of the INDEX, or of the one that the first refresh would build, can't be shared out.
    """
    if not config.index:
        return
    manifest = read_manifest(config.index, INDEX)
    kinds = {f"index {config.index}": str(manifest["factory"])}
    if encodes_again(config):
        kinds |= {"retrieval.factory": str(next_settings(config.index, config.retrieval.factory)["factory"])}
    if config.retrieval.search_shards:
        for name, factory in kinds.items():
            if reason := why_whole(empty_index(keys, factory)):
                raise InputError(f"{name}, of kind {factory!r}: {not_shared(reason)}")
    elif not is_mapped(empty_index(keys, manifest["factory"])):
        logger.warning(
            "index %s, of kind %r, can't be mapped: each rank (%d of them) reads all of its %.3f GiB into memory of "
            "its own; any kind but fast-scan "
            "codes (…fs) is mapped once on a machine",
            config.index,
            manifest["factory"],
            config.launch.num_ranks,
            next(file["bytes"] for file in manifest["files"] if file["path"] == FILE) / 2**30,
        )


def check_refresh(config: Config, keys: IndexKeys) -> None:
    """Refuse what every try of every refresh would fail of.

    Args:
        config: the root.
        keys: of the MEMORY that the run begins with, under the score of its CHECKPOINT.

    Raises:
        InputError: FAISS refuses the factory of the INDEX, or there is no GPU to encode on.
    """
    if not encodes_again(config):
        return
    # With `auto`, a version's INDEX is of the kind of the one before.
    factory = str(next_settings(config.index, config.retrieval.factory)["factory"])
    try:
        check_trainable(keys, factory)
    except InputError as error:
        raise InputError(f"retrieval.{error}") from error
    wanted = config.joint.refresh.num_gpus
    # Under Ray the cluster is asked, once it is joined.
    if wanted and config.launch.launcher == "local" and not torch.cuda.is_available():
        raise InputError(
            f"joint.refresh.num_gpus is {wanted:g}, and there is no CUDA device here; run where there is one, or set "
            "joint.refresh.num_gpus=0"
        )
