"""The console command `clara`: every command of the project, in the order of work.

Each command is imported when it is called; its module and flags are those of `python -m MODULE`.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from clara.errors import command_line

Main = Callable[[list[str]], int]


def _given(main: Callable[..., int], *more: object) -> Main:
    return wraps(main)(lambda argv: main(argv, *more))


def demo() -> Main:
    """The whole way on a small corpus that ships: start here"""
    from infra.demo.command import main

    return main


def plan() -> Main:
    """What a run costs before it is paid: bytes, hours, memory of a GPU, price"""
    from infra.plan.command import main

    return main


def report() -> Main:
    """Quality, latency and bytes on your own corpus beside standard RAG, and what to choose"""
    from infra.report.command import main

    return main


def wiki_corpus() -> Main:
    """The embedded corpus as JSONL"""
    from pipelines.wiki_corpus import main

    return main


def select_corpus() -> Main:
    """A smaller corpus whose articles mention each other densely"""
    from pipelines.select_corpus import main

    return main


def world() -> Main:
    """A small generated world to learn in, in which similarity misleads"""
    from pipelines.world.command import main

    return main


def build_questions() -> Main:
    """QUESTIONS from published files, your own, or a corpus"""
    from pipelines.build_questions.command import main

    return main


def build_examples() -> Main:
    """EXAMPLES for pretraining from a corpus, without a language model"""
    from pipelines.build_examples import main

    return main


def synthesize() -> Main:
    """EXAMPLES for pretraining from a corpus, by a language model"""
    from pipelines.synthesize.command import main

    return main


def train_pretrain() -> Main:
    """Stages pretrain and instruct: compressor and generator"""
    from training.pretrain import main

    return main


def import_reference() -> Main:
    """A CHECKPOINT from one of the published implementation"""
    from clara.import_reference.command import main

    return main


def build_memory() -> Main:
    """Compress a corpus into MEMORY"""
    from pipelines.build_memory.command import main

    return main


def build_index() -> Main:
    """INDEX over a MEMORY"""
    from pipelines.build_index import main

    return main


def compact() -> Main:
    """Fold the overlays and tombstones of an updated MEMORY into plain shards"""
    from pipelines.compact import main

    return main


def fit_score() -> Main:
    """A CHECKPOINT whose fused score has the weights that suit the reader best"""
    from training.fit_score import main

    return main


def set_score() -> Main:
    """A CHECKPOINT with another score, and the mean of questions that it subtracts"""
    from training.set_score import main

    return main


def score_utilities() -> Main:
    """Pools of questions, and the likelihood of the answer given each candidate"""
    from pipelines.score_utilities.command import main

    return main


def train_joint() -> Main:
    """Stage joint: retrieval and generation by one loss"""
    from training.joint import main

    return main


def train_phases() -> Main:
    """Reasoner, score, generator and joint stage against a whole corpus, in one go"""
    from infra.phases.command import main

    return main


def evaluate() -> Main:
    """Compare systems on the same questions"""
    from training.evaluate import main

    return main


def register() -> Main:
    """Register a trained system in MLflow"""
    from training.register import main

    return main


def promote() -> Main:
    """Move a model's alias to a version that beats its holder"""
    from training.promote import main

    return main


def registry() -> Main:
    """Versions of a registered model, their aliases, and the record of promotions"""
    from training.show_registry import main

    return main


def ask() -> Main:
    """Answers with the passages that they came from"""
    from clara.ask import main
    from training.registry.resolve import local_checkpoint

    return _given(main, local_checkpoint)


def serve() -> Main:
    """Answer over HTTP, also for OpenAI-compatible clients"""
    from clara.serving.command import main
    from training.registry.registered_system import registry_of, reports_of, with_registered
    from training.registry.resolve import local_checkpoint

    return _given(main, local_checkpoint, with_registered, registry_of, reports_of)


def worker_pool() -> Main:
    """Beam workers on a machine of a Spark cluster"""
    from pipelines.worker_pool.command import main

    return main


def submit_spark() -> Main:
    """A corpus job on a Spark cluster"""
    from infra.spark.submit import main

    return main


def submit_ray() -> Main:
    """Training on a Ray cluster"""
    from infra.ray.submit import main

    return main


def submit_dataflow() -> Main:
    """A corpus job on Dataflow"""
    from infra.dataflow.submit import main

    return main


def config() -> Main:
    """Print the resolved configuration, or the reference of all keys"""
    from infra.config_page import main

    return main


GROUPS: dict[str, dict[str, Callable[[], Main]]] = {
    "see it work": {"demo": demo},
    "know what it costs": {"plan": plan},
    "prepare text and questions": {
        "wiki-corpus": wiki_corpus,
        "select-corpus": select_corpus,
        "world": world,
        "build-questions": build_questions,
        "build-examples": build_examples,
        "synthesize": synthesize,
    },
    "make a compressor and a generator": {"train pretrain": train_pretrain, "import-reference": import_reference},
    "compress the corpus": {"build-memory": build_memory, "build-index": build_index, "compact": compact},
    "train retrieval": {
        "set-score": set_score,
        "fit-score": fit_score,
        "score-utilities": score_utilities,
        "train joint": train_joint,
        "train phases": train_phases,
    },
    "measure": {"evaluate": evaluate, "report": report, "register": register, "promote": promote, "registry": registry},
    "use": {"ask": ask, "serve": serve},
    "clusters": {
        "worker-pool": worker_pool,
        "submit ray": submit_ray,
        "submit spark": submit_spark,
        "submit dataflow": submit_dataflow,
    },
    "settings": {"config": config},
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def overview() -> str:
    """The text of `clara --help`."""
    lines = ["usage: clara COMMAND [--help] [--config FILE] [--set KEY=VALUE] …", ""]
    lines += ["Retrieval that learns from answers. Commands, in the order of work:"]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<17} {command.__doc__}" for name, command in commands.items())]
    return "\n".join([*lines, "", "clara COMMAND --help lists the flags of a command, with units and defaults."])


def main(argv: Sequence[str]) -> int:
    """Run a command by its name, of one word or two."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    for words in (2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in COMMANDS:
            sys.argv[0] = f"clara {name}"  # which clara.config.flags.program reads
            return COMMANDS[name]()(list(argv[words:]))
    near = [name for name in COMMANDS if name.startswith(argv[0])]
    print(f"clara {argv[0]}: no such command; there are {', '.join(near or COMMANDS)}", file=sys.stderr)
    return 2


def run() -> None:
    """Entry point of the console command `clara`."""
    command_line(main)


if __name__ == "__main__":
    run()
