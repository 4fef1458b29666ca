"""The constants of `clara plan` for this processor, from one size; another size shows how well they predict.

python -m benchmarks.plan_constants [--documents 48] [--chunk-tokens 96] [--candidates 20] [--rows 2000] [--repeats 5]

A Llama with random weights compresses chunks, makes joint steps, and runs a refresh; an INDEX is built over random
rows. Seconds are processor time of one thread, which other work on the machine changes little; a part's value is the
median of its repeats. The second size has twice the documents and rows, other chunks and other pools.
"""

import argparse
import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import words
from benchmarks.environment import RESULTS, environment, save
from benchmarks.joint_step import Steps, chunks, write_memory
from benchmarks.plan_constants_report import markdown, seconds_found
from benchmarks.zero import write_model
from clara.config.flags import plain_parser
from clara.config.load import load
from clara.config.tree import Config
from clara.errors import InputError, command_line
from clara.index.build import build_index
from clara.memory.compress import Encoding, write_memory_shard
from clara.memory.fingerprint import EncodingSettings, of_checkpoint
from clara.model.checkpoint import fresh_model
from infra.plan import work
from infra.plan.estimate import Estimate, Request
from infra.plan.machines import machine_of
from infra.plan.shape import shape_of
from training.refresh.job import RefreshJob, run_job

PARTS = ("compression", "step", "step_of_one", "read", "keys", "words", "refresh")
HIDDEN_SIZE, LAYERS, QUESTIONS = 256, 2, 4


@dataclass(frozen=True)
class Size:
    """What is measured at once.

    Attributes:
        documents: chunks that are compressed, and rows of the MEMORY of steps and refresh.
        chunk_tokens: mean tokens of a chunk.
        candidates: N.
        rows: of the INDEX, texts of 100 words.
    """

    documents: int = 48
    chunk_tokens: int = 96
    candidates: int = 20
    rows: int = 2000


class Trial:
    """One size: its artefacts, made once, and its parts as functions."""

    def __init__(self, backbone: Path, size: Size, folder: Path) -> None:
        """Make model, MEMORY and the rows of the INDEX in a folder."""
        self.size, self._folder, self._runs = size, folder, 0
        self.config = self._configured(backbone, QUESTIONS)
        rng = random.Random(0)
        self._model = fresh_model(self.config)
        self.chunks = chunks(self._model, size.documents, size.chunk_tokens, rng)
        store = write_memory(self._model, self.config, self.chunks, folder)
        self.steps = Steps(self._model, self.config, store, self.chunks, rng)
        one = self._configured(backbone, 1)
        self._one = Steps(self._model, one, store, self.chunks, random.Random(0))
        self.shape = shape_of(str(backbone))
        words.make_memory(folder / "rows", size.rows)

    def _configured(self, backbone: Path, questions: int) -> Config:
        return load(
            None,
            [
                f"backbone.path={backbone}",
                "backbone.dtype=float32",
                "model.lora.dropout=0.0",
                "joint.num_selected=2",
                f"joint.num_candidates={self.size.candidates}",
                f"joint.questions_per_step={questions}",
                f"joint.micro_batch={questions}",
            ],
        )

    def seconds(self) -> dict[str, float]:
        """Processor seconds of each of `PARTS`, once."""
        self._runs += 1
        out = self._folder / f"run-{self._runs}"
        read = timed(lambda: self.steps.memory("stored"))
        read_of_one = timed(lambda: self._one.memory("stored"))
        keys = timed(lambda: self._index(out / "keys", False))
        return {
            "compression": timed(lambda: self._compress(out / "memory")),
            "step": timed(lambda: self.steps.run("stored")) - read,
            "step_of_one": timed(lambda: self._one.run("stored")) - read_of_one,
            "read": read,
            "keys": keys,
            "words": timed(lambda: self._index(out / "words", True)) - keys,
            "refresh": timed(lambda: self._refresh(out)),
        }

    def _compress(self, folder: Path) -> None:
        settings = EncodingSettings(
            max_tokens=self._model.settings.max_document_tokens,
            overlap_tokens=0,
            key_size=256,
            key_seed=0,
            dtype="float32",
        )
        fingerprint = of_checkpoint(self._folder / "checkpoint", settings)
        encoding = Encoding(fingerprint, "float16", self.config.corpus_job.batch_tokens)
        write_memory_shard(lambda: self._model, self.chunks, folder, "shard", encoding)

    def _index(self, folder: Path, with_words: bool) -> None:
        build_index(self._folder / "rows", folder, "Flat", num_queries=0, words=with_words, verify=False)

    def _refresh(self, out: Path) -> None:
        run_job(
            RefreshJob(
                checkpoint=str(self._folder / "checkpoint"),
                backbone="",
                parent=str(self._folder / "memory"),
                memory=str(out / "refreshed"),
                index=str(out / "index"),
                factory="Flat",
                first_level=20,
                batch_tokens=self.config.corpus_job.batch_tokens,
                threads=1,
                words=False,
            )
        )

    @property
    def request(self) -> Request:
        """The size as a plan is asked for it."""
        steps = self.steps
        tokens = [len(ids) for ids in steps.texts.values()]
        asked = round(statistics.mean(len(ids) for ids in steps.questions))
        around = statistics.mean(len(p.left) + len(p.right) for p in steps.prompts)
        return Request(
            documents=self.size.documents,
            tokens_per_document=round(statistics.mean(tokens)),
            backbone="",
            gpus=1,
            refresh_gpus=1,
            price=0.0,
            question_tokens=asked,
            answer_tokens=round(statistics.mean(len(p.answer) for p in steps.prompts)),
            prompt_tokens=round(around) - asked,
        )

    def estimate(self, constants: Mapping[str, Any]) -> Estimate:
        """The plan of this size."""
        return Estimate(self.config, self.shape, self.request, machine_of("cpu", constants), constants)


def timed(part: Callable[[], object]) -> float:
    """Processor seconds of a part."""
    began = time.process_time()
    part()
    return time.process_time() - began


def ranged(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def constants_of(trial: Trial, samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Constants from the repeats of one size.

    Raises:
        InputError: four questions took no longer than one: the processor is too busy to measure.
    """
    size, request = trial.size, trial.request
    lengths = work.Lengths(
        request.tokens_per_document, request.question_tokens, request.answer_tokens, request.prompt_tokens
    )
    median = {part: statistics.median(sample[part] for sample in samples) for part in PARTS}
    of_question = work.joint_question(trial.config, trial.shape, lengths)
    more = (median["step"] - median["step_of_one"]) / (QUESTIONS - 1)
    if more <= 0:
        raise InputError("a step of four questions took no longer than one of one; measure on a machine that is free")
    fixed = max(0.0, median["step_of_one"] - more)
    compressed = size.documents * work.compression(trial.config, trial.shape, lengths)
    numbers = QUESTIONS * size.candidates * trial.config.model.num_memory_tokens * trial.shape.hidden_size
    keys = [sample["keys"] / size.rows for sample in samples]
    text = size.rows * words.NUM_WORDS
    rest = [s["refresh"] - s["compression"] - size.documents * k for s, k in zip(samples, keys, strict=True)]
    training = [QUESTIONS * of_question / max(1e-9, s["step"] - fixed) for s in samples]
    return {
        "compression_operations_per_second": ranged([compressed / s["compression"] for s in samples]),
        "training_operations_per_second": ranged(training),
        "step_seconds": ranged([fixed]),
        "read_numbers_per_second": ranged([numbers / s["read"] for s in samples]),
        "index_seconds_per_row": ranged(keys),
        "words_seconds_per_token": ranged([s["words"] / text for s in samples]),
        "refresh_fixed_seconds": ranged([max(0.0, seconds) for seconds in rest]),
    }


def stored_bytes(trial_folder: Path, size: Size) -> dict[str, dict[str, float]]:
    """Bytes that text takes in the records of MEMORY and in the words of an INDEX, for each token."""
    text = size.rows * words.NUM_WORDS
    records = sum(file.stat().st_size for file in (trial_folder / "rows").rglob("*.parquet"))
    index = trial_folder / "run-1"
    extra = _bytes_below(index / "words") - _bytes_below(index / "keys")
    return {
        "record_bytes_per_token": ranged([records / text]),
        "words_bytes_per_token": ranged([extra / text]),
    }


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def predicted(trial: Trial, constants: Mapping[str, Any]) -> dict[str, float]:
    """What a plan says of a size."""
    estimate = trial.estimate(constants)
    request = dataclasses.replace(trial.request, documents=trial.size.rows, tokens_per_document=words.NUM_WORDS)
    indexed = dataclasses.replace(estimate, request=request)
    return {
        "compression": estimate.compression_seconds(1).value,
        "joint step": estimate.step_seconds().value,
        "index": indexed.index_seconds().value,
        "refresh": estimate.refresh_seconds().value,
    }


def measured(sizes: Sequence[Size], repeats: int, folder: Path) -> dict[str, Any]:
    """Constants from the first size, and for every size what they predict and what it took, in turns."""
    write_model(folder / "backbone", HIDDEN_SIZE, LAYERS)
    trials = [Trial(folder / "backbone", size, folder / f"size-{n}") for n, size in enumerate(sizes)]
    samples: list[list[dict[str, float]]] = [[] for _ in trials]
    for repeat in range(repeats + 1):
        for trial, own in zip(trials, samples, strict=True):
            seconds = trial.seconds()
            if repeat:  # the first round warms up
                own.append(seconds)
    about = environment("benchmarks.plan_constants") | {
        "model": f"a random Llama of {LAYERS} layers and width {HIDDEN_SIZE}",
        "dtype": "float32",
        "constants": constants_of(trials[0], samples[0]) | stored_bytes(folder / "size-0", sizes[0]),
    }
    rows = [
        {"size": dataclasses.asdict(trial.size), "predicted": predicted(trial, about), "found": seconds_found(own)}
        for trial, own in zip(trials, samples, strict=True)
    ]
    return about | {"repeats": repeats, "sizes": rows}


def other_sizes(size: Size) -> list[Size]:
    """The sizes that are predicted: twice the documents and rows; other chunks and pools."""
    return [
        dataclasses.replace(size, documents=2 * size.documents, rows=2 * size.rows),
        dataclasses.replace(size, chunk_tokens=size.chunk_tokens * 5 // 3, candidates=2 * size.candidates),
    ]


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.plan_constants", __doc__)
    for field in dataclasses.fields(Size):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=field.default, help="see the description (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--output", default=str(RESULTS / "plan"), help="folder for results.json and results.md")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured, and stop")
    options: argparse.Namespace = parser.parse_args(argv)
    size = Size(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Size)})
    sizes = [size, *other_sizes(size)]
    if options.dry_run:
        print(*sizes, sep="\n")
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        result = measured(sizes, options.repeats, Path(temporary))
    save(Path(options.output), result, markdown(result))
    print(markdown(result))
    return 0


if __name__ == "__main__":
    command_line(main)
