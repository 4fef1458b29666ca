"""Time to the first token and answers a second of the HTTP service, from memory and from raw text in the prompt.

python -m benchmarks.serving --checkpoint DIR --memory DIR --index DIR --questions QUESTIONS [--clients 1 8 32]
[--answers 64] [--repeats 3]

Same LM, search and passages throughout. A round asks the same questions of each:

memory  `clara serve`, streamed
text    the same service with the passages' text in the prompt of the plain LM (benchmarks/text_service.py)
mlflow  `mlflow models serve` of the same system, which does not stream
ask     `clara.ask` in this process, one question after the other

With few cores, or with other work beside it, seconds say little: ratios within a round, and processor time, say more.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import clara
from benchmarks.environment import RESULTS, environment, save
from benchmarks.serving_load import (
    Ask,
    Server,
    Timing,
    asks_scoring_server,
    asks_stream,
    differing,
    figures,
    load,
    running,
)
from benchmarks.serving_report import markdown, ratios
from clara.config.flags import plain_parser
from clara.data.questions import read_questions
from clara.errors import InputError, command_line
from clara.serving.command import bound

_LIMIT_SECONDS = 1200.0


def parser() -> Any:
    """The command line's arguments."""
    found = plain_parser("benchmarks.serving", __doc__)
    add = found.add_argument
    for name in ("checkpoint", "memory", "index"):
        add(f"--{name}", required=True, metavar="DIR", help=f"{name.upper()} of the system")
    add("--backbone", default="", metavar="DIR", help="folder of the LM (default: the one that the CHECKPOINT names)")
    add("--dense-model", default="", metavar="DIR", help="embedding model, if the CHECKPOINT's score uses one")
    add("--questions", required=True, type=Path, metavar="DIR", help="QUESTIONS to ask")
    add("--clients", nargs="+", type=int, default=[1, 8, 32], help="at the same time (default: 1 8 32)")
    add("--answers", type=int, default=64, help="questions of a point; as many as clients at least (default: 64)")
    add("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    add("--passages", type=int, default=5, help="that an answer is read from (default: %(default)s)")
    add("--tokens", type=int, default=32, help="longest answer (default: %(default)s)")
    add("--max-running", type=int, default=32, help="serving.max_running (default: %(default)s)")
    add("--note", action="append", default=[], help="a sentence for the report; repeatable (default: none)")
    add("--output", type=Path, default=RESULTS / "serving", metavar="DIR", help="for the report")
    add("--dry-run", action="store_true", help="print the settings and stop")
    return found


def free_port() -> int:
    """A port that nobody uses now."""
    with bound("127.0.0.1", 0) as taken:
        return int(taken.getsockname()[1])


def service(options: Any, module: str, port: int) -> list[str]:
    """The command of `clara serve`, or of its variant over raw text."""
    command = [sys.executable, "-m", module, "--port", str(port), "--max-running", str(options.max_running)]
    for name in ("checkpoint", "memory", "index", "backbone", "dense_model"):
        if value := getattr(options, name):
            command += [f"--{name.replace('_', '-')}", str(value)]
    most = max(options.clients) + 1
    return [*command, "--max-waiting", str(most), "--set", f"serving.request_seconds={_LIMIT_SECONDS}"]


def mlflow_model(options: Any, folder: Path) -> Path:
    """The same system as a folder that MLflow serves."""
    from clara.config.tree import Retrieval
    from clara.model.artefact import Checkpoint
    from clara.storage.artefact import Artefact
    from training.registry.model_folder import save_model
    from training.registry.registration import Registration

    settings, checkpoint = Retrieval(), Checkpoint.open(options.checkpoint)
    registration = Registration(
        name="benchmark",
        checkpoint=checkpoint,
        memory=Artefact.open(options.memory, "MEMORY"),
        index=Artefact.open(options.index, "INDEX") if options.index else None,
        evaluation=checkpoint,  # whose hash no served model reads
        system="benchmark",
        backbone=options.backbone,
        num_selected=options.passages,
        max_new_tokens=options.tokens,
        first_level=settings.first_level,
        exact_rows=settings.exact_rows,
        device="cpu",
        dense=Retrieval(dense_model=options.dense_model),
    )
    save_model(folder, "benchmark", registration, registration.model_config())
    return folder


def started(options: Any, folder: Path, stack: ExitStack) -> dict[str, tuple[Server, Ask]]:
    """The three servers, one started after the other, each with its client."""
    found: dict[str, tuple[Server, Ask]] = {}
    sizes = options.passages, options.tokens
    for name, module in (("memory", "clara.serving"), ("text", "benchmarks.text_service")):
        port = free_port()
        command = service(options, module, port)
        server = stack.enter_context(running(command, port, "/health/ready", folder / f"{name}.log", _LIMIT_SECONDS))
        found[name] = server, asks_stream(port, *sizes)
    port, model = free_port(), mlflow_model(options, folder / "model")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--workers", "1"]
    command += ["-m", str(model), "--port", str(port)]
    server = stack.enter_context(running(command, port, "/ping", folder / "mlflow.log", _LIMIT_SECONDS))
    found["mlflow"] = server, asks_scoring_server(port, *sizes)
    return found


def one_by_one(system: "clara.System", questions: Sequence[str], options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The point of `clara.ask`, where an answer is there as a whole; and the answers by question."""
    timings, began, processor = list[Timing](), time.monotonic(), time.process_time()
    for question in questions:
        start = time.monotonic()
        text = system.ask(question, passages=options.passages, max_new_tokens=options.tokens).text
        whole = time.monotonic() - start
        timings.append(Timing(whole, whole, question, text))
    seconds, used = time.monotonic() - began, time.process_time() - processor
    point = {"name": "ask", "clients": 1, **figures(timings, seconds, used)}
    return point, {timing.question: timing.text for timing in timings}


def points(
    servers: dict[str, tuple[Server, Ask]], system: "clara.System", questions: Sequence[str], options: Any
) -> Iterator[dict[str, Any]]:
    """Every point of a round; what is compared is measured one after the other."""
    point, expected = one_by_one(system, questions[: options.answers], options)
    yield point
    for clients in options.clients:
        for name, (server, ask) in servers.items():
            before = server.processor_seconds()
            timings, seconds = load(ask, questions[: max(clients, options.answers)], clients)
            used = server.processor_seconds() - before
            found = {"name": name, "clients": clients, **figures(timings, seconds, used)}
            yield found if name == "text" else found | differing(timings, expected)


def questions_of(options: Any) -> list[str]:
    """Questions in a random order, each as often as it takes.

    Raises:
        InputError: the QUESTIONS are empty.
    """
    every = [question.question for question in read_questions(options.questions)]
    if not every:
        raise InputError(f"--questions {options.questions}: no question is in it; give others")
    random.Random(0).shuffle(every)
    number = max(options.answers, *options.clients)
    return [every[i % len(every)] for i in range(number)]


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    if min(*options.clients, options.answers, options.repeats, options.passages, options.tokens) < 1:
        raise InputError("--clients, --answers, --repeats, --passages and --tokens: expected 1 or more each")
    if options.dry_run:
        print(json.dumps(vars(options), indent=1, default=str))
        return 0
    questions, about = questions_of(options), environment("benchmarks.serving")
    from clara.config.tree import Retrieval

    retrieval = Retrieval(dense_model=options.dense_model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        servers = started(options, folder, stack)
        system = clara.open(
            options.checkpoint, options.memory, options.index, backbone=options.backbone, retrieval=retrieval
        )
        for _, ask in servers.values():  # what is compiled or mapped on first use is not measured
            ask(questions[0])
        system.ask(questions[0], passages=options.passages, max_new_tokens=options.tokens)
        rounds = []
        for number in range(options.repeats):
            rounds.append({"points": list(points(servers, system, questions, options))})
            print(f"round {number + 1} of {options.repeats}: {json.dumps(rounds[-1])}", file=sys.stderr)
        found = {
            "about": about,
            "notes": options.note,
            "rows": len(system.retriever.store),
            "dtype": str(next(system.retriever.model.parameters()).dtype).removeprefix("torch."),
            "passages": options.passages,
            "tokens": options.tokens,
            "answers": options.answers,
            "start_seconds": {name: server.start_seconds for name, (server, _) in servers.items()},
            "rounds": rounds,
            "ratios": ratios(rounds, options.clients),
        }
    save(options.output, found, markdown(found))
    print(markdown(found))
    return 0


if __name__ == "__main__":
    command_line(main)
