"""Hot swap: a newer system is loaded beside the one that answers, and takes over at a request boundary."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from clara.errors import InputError
from clara.serving.engine import Engine
from clara.serving.metrics import Metrics
from clara.serving.sources import Source
from clara.system import System

logger = logging.getLogger(__name__)
_FAULT = "a fault of the service; its log has more"
_CLEARING_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 3600.0


class Follower:
    """Looks again and again for what is to be served, in a separate thread.

    What cannot be found, opened or asked leaves the system that answers; `state` and the metrics report it. One that
    failed is tried again after a wait that doubles; another one at once.
    """

    def __init__(
        self, engine: Engine, find: Callable[[], Source], served: Source, metrics: Metrics, every_seconds: float
    ) -> None:
        """Create the follower; `start` starts its thread.

        Args:
            engine: answers.
            find: what is to be served now.
            served: what the engine answers with already.
            metrics: what is counted into.
            every_seconds: between two looks.
        """
        self._engine, self._find, self._served, self._metrics = engine, find, served, metrics
        self._every, self._error, self._since = every_seconds, "", time.time()
        self._failed, self._again, self._wait = "", 0.0, every_seconds
        self._old: weakref.ref[System] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def state(self) -> dict[str, Any]:
        """What is served, since when (Unix seconds), and why nothing newer is (empty: it is the newest)."""
        return {"serving": self._served.name, "since": self._since, "error": self._error}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that loads a system ends with the process."""
        self._stopping.set()
        self._thread.join(_CLEARING_SECONDS)

    def _run(self) -> None:
        end = time.monotonic() + self._every
        while not self._stopping.wait(max(0.0, min(end - time.monotonic(), self._pause()))):
            if time.monotonic() >= end:
                self.look()
                end = time.monotonic() + self._every

    def _pause(self) -> float:
        """Until the next look; while answers of an old system run, a moment, after which its memory is freed."""
        if self._old is None:
            return self._every
        gc.collect()  # models refer to themselves
        if self._old() is None:
            self._old = None
        return min(self._every, _CLEARING_SECONDS)

    def look(self) -> None:
        """Find what is to be served; if it is another system, load it and let it take over."""
        try:
            source = self._find()
            if source.identity == self._served.identity:
                self._failed = ""
                self._report("")
            elif source.identity != self._failed or time.monotonic() >= self._again:
                self._swap(source)
        except InputError as error:
            self._report(str(error))
        except (Exception, SystemExit):
            logger.exception("looking for a newer system failed")
            self._report(_FAULT)

    def _swap(self, source: Source) -> None:
        logger.info("loading", extra={"fields": {"system": source.name}})
        new = source.identity != self._failed
        self._wait = self._every if new else min(2 * self._wait, _LONGEST_WAIT_SECONDS)
        # Until it has taken over: whatever ends this attempt, the next one waits.
        self._failed, self._again = source.identity, time.monotonic() + self._wait
        old = weakref.ref(self._engine.system)
        system = source.open()
        # What fails with the first question must fail here.
        system.ask("?", passages=1, max_new_tokens=1)
        self._engine.swap(system, source.settings)
        self._served, self._since, self._old, self._failed = source, time.time(), old, ""
        self._metrics.swaps.inc()
        self._report("")
        logger.info("a newer system answers", extra={"fields": {"system": source.name}})

    def _report(self, error: str) -> None:
        if error:
            self._metrics.swap_failures.inc()
            if error != self._error:
                logger.warning("the system that answers stays", extra={"fields": {"reason": error}})
        self._error = error
        self._metrics.outdated.set(bool(error))
