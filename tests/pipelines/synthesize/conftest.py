"""Fixtures of the synthesis command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.synthesize.command import main
from tests.helpers import tiny
from tests.helpers.asking import ask
from tests.helpers.language_model import LanguageModel
from tests.helpers.synthesis_command import NUM_DOCUMENTS, Run, command, write

__all__ = ["ask"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", tiny.documents()[:NUM_DOCUMENTS])


@pytest.fixture
def run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process, with short waits, and returns its output."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def synthesize(model: LanguageModel, *arguments: str, output: str = "examples", given: Path = corpus) -> Path:
        assert (
            main(command(given, tmp_path / output, model, "--model-name=tiny", "--retry-seconds=0.01", *arguments)) == 0
        )
        return tmp_path / output

    return synthesize


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a well-behaved endpoint leads to."""
    output = tmp_path_factory.mktemp("clean") / "examples"
    with LanguageModel().running() as model:
        assert main(command(corpus, output, model, "--model-name=tiny")) == 0
    return output
