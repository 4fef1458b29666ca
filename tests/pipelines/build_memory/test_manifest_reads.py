"""How often the commands read the manifests of their artefacts: an artefact is opened once and passed on."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clara.retrieval.retriever import Retriever
from pipelines import build_index
from pipelines.build_memory.command import main

_opened: list[Counter[str]] = []  # an audit hook cannot be removed: it counts only inside `manifest_reads`


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened and event == "open" and str(arguments[0]).endswith("/manifest.json") and arguments[1] in ("r", "rb"):
        _opened[-1][Path(str(arguments[0])).parent.name] += 1


sys.addaudithook(_count)


@contextmanager
def manifest_reads() -> Iterator[Counter[str]]:
    """Counts how often this process opens a manifest to read it, by the name of the artefact's folder."""
    _opened.append(Counter())
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


def test_each_manifest_is_read_once(tiny_checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    memory, index = tmp_path / "memory", tmp_path / "index"
    common = ["--checkpoint", str(tiny_checkpoint), "--dtype=float32", "--num-workers=1", "--num-shards=2"]
    with manifest_reads() as reads:
        assert main(["--input", str(corpus_file), "--output", str(memory), *common]) == 0
    # The command plans with it, then one process reads the tokenizer and the model for its part of the work.
    assert reads["checkpoint"] <= 3, reads
    assert reads["memory"] <= 2, reads
    with manifest_reads() as reads:
        assert build_index.main(["--memory", str(memory), "--output", str(index), "--factory", "Flat"]) == 0
    assert reads["memory"] == 1, reads
    with manifest_reads() as reads:
        retriever = Retriever.open(tiny_checkpoint, memory, index)
    assert reads == {"checkpoint": 1, "memory": 1, "index": 1}
    assert retriever.store.hash == retriever.store.artefact.hash
