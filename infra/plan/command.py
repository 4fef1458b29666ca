"""What a run costs, before it is paid: bytes of MEMORY, hours, memory of a GPU, price, and what to choose.

python -m infra.plan --documents N --tokens-per-document T --backbone NAME_OR_CONFIG [--compression R] [--gpus G]
[--gpu h100] [--price X] [--json]

Everything else is read from the settings of the run: give the same --config and --set as to joint training. Figures of
GPUs are assumed, with a range, as nobody has run one; those of a CPU are measured (benchmarks/plan_constants.py).
"""

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from clara.config.flags import Command
from clara.config.tree import Config
from clara.errors import InputError, command_line

if TYPE_CHECKING:
    from infra.plan.estimate import Estimate

_DEFAULT_DISK_TB = 2.0
_CORPUS_JOB = tuple(f"corpus_job.{key}" for key in ("max_tokens", "overlap_tokens", "codec", "key_size"))
_USES = ("utilities", "backbone", "model", "joint", *_CORPUS_JOB, "index_job.words", "retrieval.factory")


def parser() -> Command:
    """The command line's arguments."""
    found = Command("infra.plan", __doc__, uses=_USES)
    add = found.add_argument
    add("--documents", type=int, required=True, metavar="N", help="documents of the corpus")
    add("--tokens-per-document", type=int, required=True, metavar="T", help="mean tokens of a document")
    add(
        "--backbone",
        metavar="NAME_OR_CONFIG",
        help="name of a published LM, as mistral-7b, or a model folder (default: backbone.path)",
    )
    add(
        "--compression",
        type=float,
        metavar="R",
        help="tokens of a chunk for each memory token; sets model.num_memory_tokens (default: as configured)",
    )
    add("--gpus", type=int, default=1, metavar="G", help="GPUs that compress and train; of cpu: cores (default: 1)")
    add("--gpu", default="h100", metavar="KIND", help="kind of GPU, or cpu for this kind of processor (default: h100)")
    add("--refresh-gpus", type=int, default=1, metavar="G", help="GPUs that a refresh has for itself (default: 1)")
    add(
        "--refresh-share",
        type=float,
        default=0.2,
        metavar="X",
        help="share of all device time that refreshes may take (default: 0.2)",
    )
    add("--disk-tb", type=float, default=_DEFAULT_DISK_TB, metavar="X", help="10^12 bytes for MEMORY (default: 2)")
    add("--price", type=float, default=0.0, metavar="X", help="of a GPU for an hour (default: not known)")
    add("--question-tokens", type=int, default=24, metavar="N", help="of a question (default: 24)")
    add("--answer-tokens", type=int, default=12, metavar="N", help="of an answer (default: 12)")
    add("--json", action="store_true", help="print JSON")
    return found


def checked(options: argparse.Namespace) -> None:
    """Refuse numbers that are no sizes.

    Raises:
        InputError: a number is out of its range.
    """
    for name in ("documents", "tokens_per_document", "gpus", "refresh_gpus", "question_tokens", "answer_tokens"):
        if (value := getattr(options, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    for name in ("compression", "disk_tb", "price"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and (value > 0 or (name == "price" and value == 0))):
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a number over 0")
    if not 0 < options.refresh_share < 1:
        raise InputError(f"--refresh-share {options.refresh_share}: expected a share between 0 and 1")


def configured(config: Config, compression: float | None) -> Config:
    """The settings, with M for a compression that was asked for.

    Raises:
        InputError: it leaves no memory token.
    """
    if compression is None:
        return config
    longest = config.corpus_job.max_tokens or config.model.max_document_tokens
    slots = round(longest / compression)
    if slots < 1:
        raise InputError(f"--compression {compression:g}: chunks have {longest} tokens; expected at most {longest}")
    return config.model_copy(update={"model": config.model.model_copy(update={"num_memory_tokens": slots})})


def estimate_of(options: argparse.Namespace) -> "Estimate":
    """The estimate that a command line asks for.

    Raises:
        InputError: an unknown GPU or backbone, or numbers that are no sizes.
    """
    from infra.plan.estimate import Estimate, Request  # imports numpy and, where it estimates, FAISS
    from infra.plan.machines import machine_of, read_constants
    from infra.plan.shape import shape_of

    checked(options)
    backbone = options.backbone or options.config.backbone.path
    if not backbone:
        raise InputError("--backbone is missing, and backbone.path is not set; give a name or a model folder")
    constants = read_constants()
    request = Request(
        options.documents,
        options.tokens_per_document,
        backbone,
        options.gpus,
        options.refresh_gpus,
        options.price,
        options.question_tokens,
        options.answer_tokens,
    )
    machine = machine_of(options.gpu, constants)
    return Estimate(configured(options.config, options.compression), shape_of(backbone), request, machine, constants)


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    estimate = estimate_of(options)
    from infra.plan.plan import plan_of
    from infra.plan.text import as_text

    plan: dict[str, Any] = plan_of(estimate, refresh_share=options.refresh_share, disk_bytes=options.disk_tb * 1e12)
    print(json.dumps(plan, indent=1) if options.json else as_text(plan))
    return 0


if __name__ == "__main__":
    command_line(main)
