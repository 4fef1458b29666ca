"""Turn a checkpoint of the published implementation (apple/ml-clara) into a CHECKPOINT.

    python -m clara.import_reference --checkpoint DIR --base DIR --output DIR

DIR of --checkpoint holds config.json, adapters.pth and decoder_first_last_layers.pth. They are read as plain tensors:
no code of a pickle runs. Every tensor is used, reported as a copy of one that is, or named in an error.

What an imported checkpoint does as the reference does, by its own settings (off in every other checkpoint): over-long
texts are cut together with their eos (`cut_inputs`), memories overlap where its config says sep = false
(`overlapping_slots`), a template that drops the system role drops it (`keep_system`), thinking is switched off in the
template, answers end with all that the template puts there (`whole_tail`), and the LM may emit the added tokens
(`added_tokens.safetensors`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.config.flags import Command, add_setting
from clara.errors import InputError
from clara.import_reference.files import ADAPTERS, CONFIG, LAYERS
from clara.model.backbone_files import tokenizer_hash, weights_hash
from clara.storage.folders import sha256_file
from clara.storage.manifest import MANIFEST, read_manifest, up_to_date

if TYPE_CHECKING:
    from clara.import_reference.format import Reference


def parser() -> Command:
    """The command line's arguments."""
    found = Command("clara.import_reference", __doc__)
    add = found.add_argument
    add("--checkpoint", required=True, metavar="DIR", help=f"published checkpoint: {CONFIG}, {ADAPTERS}, {LAYERS}")
    add(
        "--base",
        required=True,
        metavar="DIR",
        help="folder of the language model that it was trained on, with its tokenizer; no name of a hub",
    )
    add_setting(found, "output", metavar="DIR", required=True)
    add(
        "--ignore",
        nargs="+",
        default=[],
        metavar="FIELD",
        help=f"unknown fields of {CONFIG} that change no number (default: refuse them)",
    )
    add(
        "--untrained-generator",
        action="store_true",
        help="leave out decoder_adapter, as the reference does by mistake for stage1_2 (default: import it)",
    )
    add("--overwrite", action="store_true", help="replace a finished CHECKPOINT that was made from something else")
    add("--dry-run", action="store_true", help="read and check everything, print the table, write nothing")
    return found


def recipe(reference: "Reference", base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What determines the CHECKPOINT."""
    files = [base / name for name in ("tokenizer_config.json", "chat_template.jinja")]
    return {
        "job": "import_reference",
        "checkpoint": {name: sha256_file(reference.directory / name) for name in (CONFIG, ADAPTERS, LAYERS)},
        "base": {
            "weights": weights_hash(base),
            "tokenizer": tokenizer_hash(base),
            **{f.name: sha256_file(f) for f in files if f.is_file()},
        },
        "config": reference.config,
        "untrained_generator": options.untrained_generator,
    }


def check_output(output: Path, inputs: Sequence[Path], overwrite: bool) -> list[Path]:
    """Files of a CHECKPOINT that is to be replaced; nothing is touched yet.

    Raises:
        InputError: the output is an input, or holds a finished artefact that is not to be overwritten, or no
            CHECKPOINT.
    """
    if output.resolve() in [path.resolve() for path in inputs]:
        raise InputError(f"--output {output}: is one of the inputs; give another directory")
    if not (output / MANIFEST).exists():
        return []
    manifest = read_manifest(output, "CHECKPOINT")
    if not overwrite:
        raise InputError(
            f"--output {output}: holds a finished CHECKPOINT that was made from something else; "
            "choose another directory, or replace it with --overwrite"
        )
    return [output / MANIFEST, *(output / entry["path"] for entry in manifest["files"])]


def shown(rows: Sequence[tuple[str, str, str]]) -> str:
    """The table of what came from where."""
    table = [("from", "what", "to"), *rows]
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    return "\n".join(f"{source:<{widths[0]}}  {what:<{widths[1]}}  {to}" for source, what, to in table)


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    from transformers.utils.logging import disable_progress_bar

    from clara.import_reference.convert import convert  # imports torch, as the next
    from clara.import_reference.format import STAGE_OF, config_rows, read_reference
    from clara.model.checkpoint import save_checkpoint

    checkpoint, base, output = Path(options.checkpoint), Path(options.base), Path(options.output)
    disable_progress_bar()
    reference = read_reference(checkpoint, options.ignore)
    made_from = recipe(reference, base, options)
    if not options.dry_run and up_to_date(output, "CHECKPOINT", made_from):
        print(f"{output}: up to date")
        return 0
    replaced = [] if options.dry_run else check_output(output, (checkpoint, base), options.overwrite)
    imported = convert(reference, base, untrained_generator=options.untrained_generator)
    print(shown([*imported.rows, *config_rows(reference, imported.model.settings)]))
    if options.dry_run:
        return 0
    for file in replaced:
        file.unlink(missing_ok=True)
    stage = STAGE_OF[reference.config["training_stage"]]
    save_checkpoint(
        imported.model, output, stage=stage, recipe=made_from, separate_query_reasoner=imported.separate_query_reasoner
    )
    print(f"{output}: CHECKPOINT of stage {stage} for {base}, in {reference.dtype}")
    return 0
