"""What rows that are not read add to a step of training: 0, 1,000 and 100,000 of them in the denominator.

python -m benchmarks.denominator [--model tiny NAME=FOLDER …] [--rows 1000 100000] [--repeats 5]

A step scores the utility of 20 candidates of each question (20 readings and one of nothing) and trains the query
reasoner on them. The unread rows' unit vectors are of slot means and held in memory, as a step of stage joint holds
them. The second step has utilities that were scored beforehand, and reads nothing: the most that rows can add.
"""

import dataclasses
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS, environment, save
from benchmarks.joint_step import TINY, models, words_of
from clara.config.flags import plain_parser
from clara.config.load import load
from clara.config.roles import QUERY_REASONER
from clara.errors import command_line
from clara.model.checkpoint import fresh_model
from clara.model.joint_batch import JointBatch, Unread
from clara.model.steps import JointStep
from training.loop.engine import LocalEngine

_SETTINGS = (
    "model.score.pooling=slot_mean",
    "joint.answer_weight=0",
    "joint.utility_weight=1",
    "joint.utility_target=mass",
    "joint.micro_batch=2",
)


class Steps:
    """One step of the same questions and pools, with any number of unread rows."""

    def __init__(self, folder: str, dtype: str, rng: random.Random) -> None:
        config = load("", [*_SETTINGS, f"backbone.path={folder}", f"backbone.dtype={dtype}"])
        self.settings, self.model = config.joint, fresh_model(config)
        self.model.train_only([QUERY_REASONER])
        groups = [(1e-3, self.model.role_parameters(QUERY_REASONER))]
        self.engine = LocalEngine(JointStep(self.model, self.settings), groups, self.settings.optimiser)
        shape = self.settings.micro_batch, self.settings.num_candidates
        memory = torch.randn(*shape, self.model.num_memory_tokens, self.model.hidden_size)
        valid = torch.ones(shape, dtype=torch.bool)
        texts = [words_of(self.model, rng, 20) for _ in range(shape[0])]
        self.batch = JointBatch(
            questions=[self.model.question_ids(text) for text in texts],
            prompts=[self.model.prompts.question(text, words_of(self.model, rng, 6)) for text in texts],
            memory=memory.to(self.model.backbone.dtype),
            valid=valid,
            positive=torch.zeros_like(valid),
        )
        self.nats = torch.randn(shape)

    def run(self, unread: int, *, scored: bool) -> None:
        """One step with its update, at rate 0: every variant has the same weights, at the same price."""
        batch, shape = self.batch, (len(self.batch.questions), unread)
        if unread:
            unit = torch.nn.functional.normalize(torch.randn(unread, self.model.hidden_size), dim=1)
            batch = dataclasses.replace(batch, unread=Unread(unit, torch.zeros(shape)))
        if scored:
            batch = dataclasses.replace(batch, utilities=self.nats, without=self.nats.min(dim=1).values - 1)
        began = time.process_time()
        output = self.engine.forward(batch, batch.weight, len(batch.questions))
        self.engine.backward(output.loss, last=True)
        self.engine.update([0.0])
        self.seconds = time.process_time() - began


def measure(steps: Steps, rows: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Processor time of each number of rows relative to none, in the same round; the first round does not count."""
    found = []
    for scored in (False, True):
        seconds: dict[int, list[float]] = {count: [] for count in (0, *rows)}
        for number in range(repeats + 1):
            for count, taken in seconds.items():
                gc.collect()
                steps.run(count, scored=scored)
                taken += [steps.seconds] * bool(number)
        for count in rows:
            ratios = [more / none for more, none in zip(seconds[count], seconds[0], strict=True)]
            found.append(
                {
                    "reads": 0 if scored else steps.settings.num_candidates,
                    "unread_rows": count,
                    "step_seconds_without": statistics.median(seconds[0]),
                    "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
                }
            )
    return found


def markdown(found: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "# Rows in the denominator",
        "",
        f"`{about['command']}`",
        "",
        f"{about['processor']}, {about['torch_threads']} thread(s). Processor time of a step relative to the same step "
        "without unread rows, median [least, most] of the rounds.",
        "",
        "| model | candidates read in the step | unread rows | step without | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        ratio = row["ratio"]
        lines.append(
            f"| {row['model']} | {row['reads']} | {row['unread_rows']:,} | {row['step_seconds_without']:.3f} s | "
            f"{ratio['median']:.3f} [{ratio['min']:.3f}, {ratio['max']:.3f}] |"
        )
    return "\n".join([*lines, "", "Aim: 1,000 unread rows cost 5 % or less of a step that reads 20 candidates.", ""])


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.denominator", __doc__)
    parser.add_argument("--model", nargs="+", default=[TINY], metavar="NAME=FOLDER", help="causal LMs (default: tiny)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000], help="unread rows (1000 100000)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the LM (float32)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of questions and vectors (default: 0)")
    parser.add_argument("--output", default=str(RESULTS / "denominator"), help="folder for results.json and results.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    about, found = environment("benchmarks.denominator"), []
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in models(options.model, Path(temporary)):
            torch.manual_seed(options.seed)
            steps = Steps(folder, options.dtype, random.Random(options.seed))
            found += [{"model": name, **row} for row in measure(steps, options.rows, options.repeats)]
            save(Path(options.output), {**about, "rows": found}, markdown(found, about))
    print(markdown(found, about))
    return 0


if __name__ == "__main__":
    command_line(main)
