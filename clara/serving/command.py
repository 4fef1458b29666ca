"""Serve a trained system over HTTP.

python -m clara.serving --checkpoint DIR --memory DIR --index DIR

The console command clara serve also takes --model models:/NAME@ALIAS --tracking-uri URI in place of the three: what
that version was registered with. Other flags beside it take precedence. With --follow a newer holder of the alias, or a
newer MEMORY and INDEX, takes over without a restart.

POST /v1/answers, /v1/search and /v1/chat/completions (of the OpenAI API); GET / is a page for browsers, and
GET /openapi.json lists all requests. Those below /v1/ need the key that CLARA_API_KEY holds, if it is set. SIGTERM or
Ctrl-C: running requests end, then the service.
"""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara.config.flags import Command, add_setting
from clara.config.serving import Serving
from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.opening import Resolve, add_system_settings, as_it_is, open_system
from clara.serving.sources import Source, Sources
from clara.storage.artefact import Artefact

if TYPE_CHECKING:
    from fastapi import FastAPI

    from clara.index.search import OpenIndex
    from clara.serving.engine import Engine
    from clara.serving.evaluation import Report
    from clara.serving.follow import Follower
    from clara.serving.metrics import Metrics
    from clara.serving.registry import Describe
    from clara.system import System

logger = logging.getLogger(__name__)
Registered = Callable[[Sequence[str]], list[str]]
"""Replaces `--model` in arguments by the flags of that version."""
Described = Callable[[Sequence[str]], "Describe | None"]
"""From arguments, what reads the registry about the model that they name."""
Reported = Callable[[Sequence[str]], "Report | None"]
"""From arguments, what reads the evaluation reports of that model's versions."""
Search = Callable[[Retrieval], "OpenIndex | None"]
"""How the settings of a search have an INDEX opened; None: this process maps it."""


def parser(more: Sequence[str] = ()) -> Command:
    """The command line's arguments; `more` are keys that `--set` takes beside them."""
    parser = Command("clara.serving", __doc__, uses=["serving", *more])
    add_system_settings(parser)
    add_setting(parser, "serving.host", metavar="ADDRESS")
    for name in ("port", "num_selected", "max_new_tokens", "max_running", "max_waiting", "follow", "follow_seconds"):
        add_setting(parser, f"serving.{name}")
    parser.add_argument(
        "--against",
        default="",
        metavar="CHECKPOINT,MEMORY[,INDEX]",
        help="a second system, which the page compares with the first",
    )
    parser.add_argument("--evaluation", default="", metavar="DIR", help="EVALUATION that the page shows")
    parser.add_argument("--dry-run", action="store_true", help="open everything, check that it fits, and stop")
    return parser


def parts_of(given: str) -> list[str]:
    """CHECKPOINT, MEMORY and INDEX (empty: none) of a second system; nothing where none is given.

    Raises:
        InputError: not two or three paths.
    """
    if not given:
        return []
    parts = given.split(",")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(f"--against {given!r}: expected CHECKPOINT,MEMORY or CHECKPOINT,MEMORY,INDEX")
    return [*parts, ""][:3]


def second_system(options: argparse.Namespace, parts: list[str], resolve: Resolve) -> "System | None":
    """The system of these parts, with the backbone and the sizes of a search of the flags; None where there are none.

    Raises:
        InputError: see `clara.open`.
    """
    if not parts:
        return None
    checkpoint, memory, index = parts
    return open_system(options, resolve(checkpoint, options.tracking_uri), memory, index)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet.

    Raises:
        InputError: the address is in use, or not one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise InputError(
            f"serving.host {host!r}, serving.port {port}: {error.strerror}; choose another with --host or --port"
        ) from error
    return taken


def key_of(settings: Serving) -> str:
    """The key that requests must bear; empty: none.

    Raises:
        InputError: the variable is set and empty, or holds what no header can.
    """
    key = os.environ.get(settings.key_variable)
    if key is None:
        return ""
    if not key.strip() or not key.isascii() or key != key.strip():
        raise InputError(
            f"{settings.key_variable}: expected a key of ASCII characters without spaces around it; set one, or unset "
            "the variable to serve without a key"
        )
    return key


@dataclass(frozen=True)
class Plan:
    """What a command line has served, checked before the model is read.

    Attributes:
        options: parsed flags.
        key: that requests must bear; empty: none.
    """

    options: argparse.Namespace
    key: str
    _against: list[str]
    _resolve: Resolve
    _sources: Sources
    _served: Source

    @classmethod
    def of(
        cls,
        argv: Sequence[str],
        resolve: Resolve = as_it_is,
        registered: Registered = list,
        *,
        search: Search = lambda _: None,
        more: Sequence[str] = (),
    ) -> "Plan":
        """Parse, and find what is named.

        Args:
            argv: arguments of the command line.
            resolve: see `Resolve`.
            registered: see `Registered`.
            search: see `Search`.
            more: keys that `--set` takes beside those of `clara serve`.

        Raises:
            InputError: an argument or the key is wrong, something that is named is missing, or a package is.
        """

        def parse() -> tuple[argparse.Namespace, list[str]]:
            words = registered(argv)
            return parser(more).parse_args(words), words

        options, words = parse()
        settings = options.config.serving
        against, key = parts_of(options.against), key_of(settings)
        # A registered version names its own MEMORY.
        pinned = not settings.follow or words != list(argv)
        if options.evaluation:
            Artefact.open(options.evaluation, "EVALUATION")
        sources = Sources(parse, resolve, pinned, search(options.config.retrieval))
        served = sources.find()
        check_packages()
        return cls(options, key, against, resolve, sources, served)

    @property
    def settings(self) -> Serving:
        """Limits and defaults."""
        settings: Serving = self.options.config.serving
        return settings

    def app(self, metrics: "Metrics", describe: "Describe | None" = None, report: "Report | None" = None) -> "FastAPI":
        """Read the model, and make the application.

        Args:
            metrics: what is counted into.
            describe: see `make_app`.
            report: see `make_app`.

        Raises:
            InputError: see `clara.open`.
        """
        from clara.serving.app import make_app
        from clara.serving.evaluation import read_report
        from clara.serving.follow import Follower

        def follow(engine: "Engine", counted: "Metrics") -> "Follower":
            return Follower(engine, self._sources.find, self._served, counted, self.settings.follow_seconds)

        return make_app(
            self._served.open(),
            self.settings,
            key=self.key,
            metrics=metrics,
            follow=follow if self.settings.follow else None,
            against=second_system(self.options, self._against, self._resolve),
            describe=describe,
            evaluation=read_report(self.options.evaluation) if self.options.evaluation else None,
            report=report,
        )


def check_packages() -> None:
    """Check that the packages of the service are there.

    Raises:
        InputError: a package is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; it comes with pip install 'clara-rag[serve]'") from error


def main(
    argv: list[str],
    resolve: Resolve = as_it_is,
    registered: Registered = list,
    described: Described = lambda _: None,
    reported: Reported = lambda _: None,
) -> int:
    """The command line; see `Plan.of`, `Described` and `Reported`."""
    plan = Plan.of(argv, resolve, registered)
    options, settings = plan.options, plan.settings
    # Taken before the model is read, which may take a while; clients are refused until the service listens.
    taken = bound(settings.host, settings.port)
    with taken:
        import uvicorn

        from clara.serving.metrics import Metrics

        metrics = Metrics()
        app = plan.app(metrics, described(argv), reported(argv))
        host, port = taken.getsockname()[:2]
        if options.dry_run:
            rows = len(app.state.engine.system.retriever.store)
            print(f"{options.memory}: {rows} rows, fits {options.checkpoint}; {host}:{port} is free")
            return 0
        log_as_json(metrics)
        kind = f"key in {settings.key_variable}" if plan.key else f"no key: {settings.key_variable} is not set"
        logger.info("serving", extra={"fields": {"url": f"http://{host}:{port}", "access": kind}})
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        uvicorn.Server(config).run(sockets=[taken])
    return 0


def log_as_json(metrics: "Metrics") -> None:
    """Log to standard error, one JSON object a line."""
    from clara.serving.logs import LogHandler

    root = logging.getLogger()
    root.handlers[:] = [LogHandler(sys.stderr, metrics)]
    root.setLevel(logging.INFO)
