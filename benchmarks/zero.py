"""What ZeRO shares out: bytes and the loss curve of a joint run for each stage and number of ranks, beside one process.

python -m benchmarks.zero [--stages 1 2 3] [--ranks 2 4] [--hidden-size 512] [--layers 4] [--steps 3]

A model with random weights, MEMORY and questions are made on the spot. Ranks are processes of this machine, DeepSpeed
over gloo, on the CPU: what is measured is what each rank holds, not how fast it is. Rows of the same model, steps and
packages that the results already have are kept, so that a long run can be cut into several.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS, environment, save
from benchmarks.joint_step import chunks, words_of, write_memory
from clara.config.flags import plain_parser
from clara.config.load import load
from clara.data.questions import Question, write_questions
from clara.errors import command_line
from clara.model.checkpoint import fresh_model
from pipelines.world.command import save_backbone
from training.loop.lines import read
from training.run.recipe import absolute, run_paths
from training.run.report import finish
from training.run.run import train_rank

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("weights", "gradients", "optimiser")


def write_model(folder: Path, hidden_size: int, layers: int) -> None:
    """A language model with random weights and a small vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    save_backbone(folder, 0)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden_size, 3 * hidden_size, layers
    config.head_dim = hidden_size // config.num_attention_heads
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_inputs(folder: Path, options: argparse.Namespace) -> list[str]:
    """Model, CHECKPOINT, MEMORY and QUESTIONS. Returns the settings of a run over them, without who computes."""
    write_model(folder / "backbone", options.hidden_size, options.layers)
    rng = random.Random(0)
    sets = [
        f"backbone.path={folder / 'backbone'}",
        "backbone.dtype=float32",
        "model.lora.dropout=0.0",
        "joint.train_compressor=true",
        "joint.published_pool=true",
        "joint.in_batch=false",
        "joint.num_candidates=8",
        "joint.num_selected=2",
        "joint.questions_per_step=4",
        "joint.micro_batch=1",
        f"joint.steps={options.steps}",
        "joint.optimiser.learning_rate=1e-3",
        "launch.threads=1",
        "launch.zero3_keep_whole_below=0",
        f"checkpoint={folder / 'checkpoint'}",
        f"memory={folder / 'memory'}",
        f"questions={folder / 'questions'}",
    ]
    config = load(None, sets)
    model = fresh_model(config)
    rows = chunks(model, 24, 60, rng)
    write_memory(model, config, rows, folder)
    questions = [
        Question(
            question_id=f"q{n}",
            question=words_of(model, rng, rng.randint(4, 20)),
            answers=(words_of(model, rng, rng.randint(1, 8)),),
            positive_ids=(rows[n].document_id,),
            candidate_ids=tuple(c.document_id for c in rng.sample(rows, 8)),
            exclude_ids=(),
            split="train",
        )
        for n in range(12)
    ]
    write_questions(folder / "questions", questions, recipe={"made_by": "benchmarks"})
    return sets


def as_rank(sets: Sequence[str]) -> None:
    """One rank of a run, or all of it where nobody else takes part."""
    from training.launch.one_process import engine
    from training.loop.zero_engine import engine_for

    world = int(os.environ["WORLD_SIZE"])
    config = absolute(load(None, sets))
    if world == 1:
        train_rank(config, engine, num_ranks=1, worker=None, device="cpu")
        finish(config)
        return
    torch.distributed.init_process_group("gloo")
    train_rank(
        config,
        lambda stage: engine_for(config, stage, num_ranks=world, device="cpu"),
        num_ranks=world,
        worker=None,
        device="cpu",
    )
    if torch.distributed.get_rank() == 0:
        finish(config)
    torch.distributed.destroy_process_group()


def run(sets: Sequence[str], ranks: int) -> None:
    """Start the ranks and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.zero", "--as-rank", json.dumps(list(sets))]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    try:
        ended = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
    if any(ended):
        raise RuntimeError(f"ranks ended with {ended}")


def measured(sets: Sequence[str], output: Path, ranks: int, stage: int) -> dict[str, Any]:
    """One row of the table: the most that any rank holds, and the curve."""
    chosen = [*sets, f"output={output}", f"launch.zero_stage={stage or 1}"]
    run(chosen, ranks)
    where = run_paths(absolute(load(None, chosen)))
    held = json.loads(where.report.read_text())["memory_by_rank"]
    curve = [values["loss"] for values in read(where.metrics).values()]
    return {
        "ranks": ranks,
        "stage": stage,
        "held": held,
        "most": {p: max(rank[p] for rank in held) for p in held[0]},
        "curve": curve,
    }


def markdown(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "# What ZeRO shares out",
        "",
        f"`{about['command']}`",
        "",
        f"{about['processor']}. {about['model']}",
        "Most that any rank holds, in MB (10⁶ bytes); the curve's largest relative difference from one process.",
        "",
        "| ranks | ZeRO stage | weights (frozen LM and adapters) | "
        "gradients that wait for the update | optimiser and master weights | whole process, peak | curve |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['most'][part] / 1e6:.2f}" for part in (*PARTS, "process_peak")]
        apart = max(abs(a - b) / abs(b) for a, b in zip(row["curve"], rows[0]["curve"], strict=True))
        lines.append(f"| {row['ranks']} | {row['stage'] or 'none'} | {' | '.join(cells)} | {apart:.1e} |")
    lines += [
        "",
        "The process's peak is mostly the libraries, "
        "and at the start every rank reads the whole model before ZeRO-3 shares it out.",
        "",
    ]
    return "\n".join(lines)


def measured_before(file: Path, about: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
    """Rows of earlier results that belong into the same table."""
    if not file.is_file():
        return []
    before = json.loads(file.read_text(encoding="utf-8"))
    if any(before.get(name) != about[name] for name in ("model", "versions", "processor")):
        return []
    return [row for row in before["rows"] if len(row["curve"]) == steps]


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.zero", __doc__)
    parser.add_argument(
        "--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3], help="ZeRO stages (default: 1 2 3)"
    )
    parser.add_argument("--ranks", type=int, nargs="+", choices=(2, 4), default=[2, 4], help="ranks (default: 2 4)")
    parser.add_argument("--hidden-size", type=int, default=512, help="of the random model, numbers (default: 512)")
    parser.add_argument("--layers", type=int, default=4, help="of the random model (default: 4)")
    parser.add_argument("--steps", type=int, default=3, help="updates (default: 3)")
    parser.add_argument("--output", default=str(RESULTS / "zero"), help="folder for results.json and results.md")
    parser.add_argument("--as-rank", default="", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured, and stop")
    options = parser.parse_args(argv)
    if options.as_rank:
        as_rank(json.loads(options.as_rank))
        return 0
    cases = [(1, 0), *[(ranks, stage) for ranks in options.ranks for stage in options.stages]]
    if options.dry_run:
        print("\n".join(f"{ranks} ranks, ZeRO stage {stage or 'none'}" for ranks, stage in cases))
        return 0
    about = environment("benchmarks.zero")
    about["model"] = (
        f"A random Llama of {options.layers} layers and width {options.hidden_size} in float32; "
        f"all three adapters train, rank 16."
    )
    rows = measured_before(Path(options.output) / "results.json", about, options.steps)
    with tempfile.TemporaryDirectory() as temporary:
        sets = write_inputs(Path(temporary), options)
        for ranks, stage in cases:
            if any((row["ranks"], row["stage"]) == (ranks, stage) for row in rows):
                continue
            rows.append(measured(sets, Path(temporary) / f"{ranks}-{stage}", ranks, stage))
            save(Path(options.output), {**about, "rows": rows}, markdown(rows, about))
            print(markdown(rows, about).splitlines()[-3], flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
