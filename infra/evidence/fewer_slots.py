"""A CHECKPOINT with fewer memory tokens, each the mean of neighbours: a warm start at higher compression.

python -m infra.evidence.fewer_slots --checkpoint DIR --memory-tokens 8 --output DIR

Adapters and markers are carried over. What comes out has to be trained: the compressor has never written so few slots.
"""

import torch

from clara.config.flags import plain_parser
from clara.config.model import Backbone
from clara.errors import InputError, command_line
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.model import ClaraModel
from clara.model.slots import MemorySlots
from clara.storage.manifest import manifest_hash, read_manifest, up_to_date


def with_fewer_slots(model: ClaraModel, num_memory_tokens: int) -> None:
    """Merge runs of neighbouring memory tokens and their gates, in place.

    Raises:
        InputError: the number does not divide the present one.
    """
    present = model.num_memory_tokens
    if not 1 <= num_memory_tokens <= present or present % num_memory_tokens:
        raise InputError(f"--memory-tokens {num_memory_tokens}: the checkpoint has {present}; choose a divisor of that")
    old, new = model.slots, MemorySlots(num_memory_tokens, model.backbone.embedding.weight)
    with torch.no_grad():
        new.memory_tokens.copy_(old.memory_tokens.unflatten(0, (num_memory_tokens, -1)).mean(dim=1))
        new.gate.copy_(old.gate.unflatten(0, (num_memory_tokens, -1)).mean(dim=1))
        new.markers.copy_(old.markers)
    model.slots = new
    model.settings = model.settings.model_copy(update={"num_memory_tokens": num_memory_tokens})


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("infra.evidence.fewer_slots", __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="CHECKPOINT to take")
    parser.add_argument(
        "--memory-tokens", required=True, type=int, metavar="M", help="of the new one; a divisor of the old one's"
    )
    parser.add_argument(
        "--backbone", default="", help="folder of the LM (default: the one that the checkpoint holds or names)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="CHECKPOINT to write")
    options = parser.parse_args(argv)
    recipe = {
        "program": "fewer_slots",
        "checkpoint": manifest_hash(options.checkpoint),
        "memory_tokens": options.memory_tokens,
    }
    if up_to_date(options.output, "CHECKPOINT", recipe):
        print(f"{options.output}: up to date")
        return 0
    manifest = read_manifest(options.checkpoint, "CHECKPOINT")
    model = load_checkpoint(options.checkpoint, Backbone(path=options.backbone, dtype="float32"))
    with_fewer_slots(model, options.memory_tokens)
    own = bool(manifest["backbone"]["own"])
    # The query reasoner is not carried over: it is taught to find another memory.
    save_checkpoint(
        model, options.output, stage="pretrain", recipe=recipe, store_backbone=own, separate_query_reasoner=False
    )
    print(f"{options.output}: CHECKPOINT with {options.memory_tokens} memory tokens")
    return 0


if __name__ == "__main__":
    command_line(main)
