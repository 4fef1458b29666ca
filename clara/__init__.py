"""Retrieval that learns from answers: memory tokens, a differentiable top-k and one loss (CLaRa, arXiv 2511.18659)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clara.config.tree import Retrieval
    from clara.storage.paths import Name
    from clara.system import System

__version__ = "0.1.0"


def open(
    checkpoint: "Name",
    memory: "Name",
    index: "Name | None" = None,
    *,
    backbone: "Name" = "",
    device: str = "cpu",
    retrieval: "Retrieval | None" = None,
    verify: bool = False,
) -> "System":
    """Open a trained system, whose parts are checked against each other.

    Args:
        checkpoint: path or URL of the CHECKPOINT.
        memory: of the MEMORY that its compressor made.
        index: of an INDEX over that MEMORY; None searches all rows exactly.
        backbone: folder of the language model; empty: the one that the CHECKPOINT names or holds.
        device: where the model computes.
        retrieval: sizes of a search, and the embedding model where the CHECKPOINT's score has a weight for dense
            vectors; None: the defaults.
        verify: read every byte of the MEMORY and check its sha256 first; else sizes only.

    Raises:
        InputError: an artefact is unfinished or damaged, or they do not belong together.
    """
    from clara.system import System  # imports torch, for which `import clara` need not wait

    return System.open(checkpoint, memory, index, backbone=backbone, device=device, retrieval=retrieval, verify=verify)
