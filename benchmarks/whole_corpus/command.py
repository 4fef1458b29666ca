"""Retrieval over whole corpora by every source and by the fused score, without any training of the reader.

python -m benchmarks.whole_corpus --dense-model FOLDER [--data FOLDER] [--output artefacts/whole-corpus]

Two corpora: the demo's, with its held-out cloze questions, and with --data all paragraphs of the published samples of
HotpotQA, 2WikiMultihopQA and MuSiQue together. For each: MEMORY, INDEX with words and dense vectors, UTILITIES of
questions whose targets are not measured, fitted scores, and a table of every source alone, of fixed sums and of the
fused score before and after the fit, with paired intervals that resample targets. Every step is a command that a user
types. Finished steps are not repeated.
"""

import argparse
from pathlib import Path

from benchmarks.environment import RESULTS, environment, save
from benchmarks.whole_corpus.report import measured, table
from benchmarks.whole_corpus.steps import Corpus, demo, samples
from clara.config.flags import plain_parser
from clara.storage.folders import atomic_write
from infra.demo.given import DTYPE
from infra.steps import SHIPPED, listed, relative, run_steps


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = plain_parser("benchmarks.whole_corpus", __doc__)
    found.add_argument("--dense-model", required=True, metavar="FOLDER", help="sentence-transformers folder")
    found.add_argument(
        "--data", default="", metavar="FOLDER", help="folder with hotpotqa/, 2wiki/ and musique/ (default: demo only)"
    )
    found.add_argument("--documents", type=int, default=1000, help="articles of the demo's corpus (default 1000)")
    found.add_argument("--fitted", type=int, default=150, help="questions that the scores are fitted to (default 150)")
    found.add_argument("--candidates", type=int, default=8, help="of each source that are read (default 8)")
    found.add_argument("--backbone", default="", metavar="FOLDER", help="the LM (default: SmolLM2-135M-Instruct)")
    found.add_argument("--start", default=SHIPPED, metavar="DIR", help="CHECKPOINT (default %(default)s)")
    found.add_argument(
        "--dtype",
        default="",
        choices=("float32", "bfloat16"),
        help="of the LM (default: what the processor is fast at)",
    )
    found.add_argument("--output", default="artefacts/whole-corpus", metavar="DIR", help="default %(default)s")
    found.add_argument("--results", default=RESULTS / "whole_corpus", metavar="DIR", help="default %(default)s")
    found.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    output = Path(options.output).absolute()
    corpora: list[Corpus] = [demo(output, options)]
    if options.data:
        corpora.append(samples(output, options))
    dtype = corpora[0].dtype
    steps = [step for corpus in corpora for step in corpus.steps()]
    if options.dry_run:
        print(listed(steps))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / DTYPE, dtype + "\n")
    run_steps(steps)
    found = {corpus.name: measured(corpus, options.dense_model) for corpus in corpora}
    text = "\n".join(table(name, rows) for name, rows in found.items())
    results = Path(options.results)
    save(results, {"environment": environment("benchmarks.whole_corpus"), "corpora": found}, text)
    print(f"\n{text}\n{relative(results)}: results.md, results.json")
    return 0
