"""What a service's flags name: found again at each look, as an alias moves and newer versions of MEMORY appear."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara.config.serving import Serving
from clara.opening import Resolve, open_system
from clara.serving.newest import Newest
from clara.storage.manifest import hash_of, manifest_hash

if TYPE_CHECKING:
    from clara.index.search import OpenIndex
    from clara.system import System


@dataclass(frozen=True)
class Source:
    """A system that can be opened.

    Attributes:
        identity: equal for the same artefacts and settings.
        name: for reports.
        open: reads it.
        settings: limits and defaults while it is served.
    """

    identity: str
    name: str
    open: "Callable[[], System]"
    settings: Serving


class Sources:
    """Finds what is to be served."""

    def __init__(
        self,
        parse: Callable[[], tuple[argparse.Namespace, list[str]]],
        resolve: Resolve,
        pinned: bool,
        open_index: "OpenIndex | None" = None,
    ) -> None:
        """Find the system by these flags.

        Args:
            parse: the flags as they are now, parsed and as words: those of a registered model change with its alias.
            resolve: see `Resolve`.
            pinned: MEMORY and INDEX are those that the flags name, and no newer versions of them.
            open_index: see `Retriever.open`.
        """
        self._parse, self._resolve, self._pinned, self._open_index = parse, resolve, pinned, open_index
        self._newest: Newest | None = None

    def find(self) -> Source:
        """What is to be served now.

        Raises:
            InputError: it cannot be found, or is not finished.
        """
        options, words = self._parse()
        checkpoint = self._resolve(options.checkpoint, options.tracking_uri)
        memory, index = options.memory, options.index
        if not self._pinned:
            self._newest = self._newest or Newest(memory, index)
            memory, index = self._newest.look()
        identity = hash_of([[manifest_hash(path) for path in (checkpoint, memory, index) if path], words])

        def opened() -> "System":
            return open_system(options, checkpoint, memory, index, self._open_index)

        return Source(
            identity, ", ".join(path for path in (checkpoint, memory, index) if path), opened, options.config.serving
        )
