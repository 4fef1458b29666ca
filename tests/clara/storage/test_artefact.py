"""Artefacts: one of a kind never takes another's place, whoever writes, and with `--overwrite` too."""

from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines.build_examples
import pipelines.build_index
import pipelines.build_memory.command
import pipelines.build_questions.command
import pipelines.compact
from clara.config.model import Backbone
from clara.data.examples import write_examples
from clara.data.questions import Question, write_questions
from clara.errors import InputError
from clara.index.build import build_index
from clara.memory.reencode import reencode
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.storage.folders import sha256_file
from clara.storage.manifest import up_to_date, write_manifest
from tests.helpers.memories import random_memory, write_memory


def files(directory: Path) -> dict[str, str]:
    """Sha256 of each file of a folder."""
    return {str(p.relative_to(directory)): sha256_file(p) for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return write_memory(tmp_path / "memory", random_memory(40))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    write_questions(tmp_path / "questions", [Question("1", "who?", ("me",), ())], recipe={})
    return tmp_path / "questions"


def test_no_writer_puts_its_kind_over_another(memory: Path, questions: Path, tiny_checkpoint: Path) -> None:
    model, store = load_checkpoint(tiny_checkpoint, Backbone(dtype="float32")), MemoryStore.open(memory)
    writers: list[tuple[str, Path, Callable[[Path], object]]] = [
        ("INDEX", memory, lambda place: build_index(memory, place)),
        ("QUESTIONS", memory, lambda place: write_questions(place, [], recipe={})),
        ("EXAMPLES", memory, lambda place: write_examples(place, [], recipe={})),
        ("CHECKPOINT", memory, lambda place: save_checkpoint(model, place, stage="joint", recipe={})),
        (
            "MEMORY",
            questions,
            lambda place: reencode(store, model, place, fingerprint=store.fingerprint_fields, batch_tokens=512),
        ),
        ("UTILITIES", memory, lambda place: up_to_date(place, "UTILITIES", {})),
        ("UTILITIES", memory, lambda place: write_manifest(place, kind="UTILITIES", files=[], recipe={})),
    ]
    for kind, place, write in writers:
        before = files(place)
        with pytest.raises(InputError, match=rf"{place.name}: holds {place.name.upper()}, which {kind} would destroy"):
            write(place)
        assert files(place) == before


def test_no_command_puts_its_kind_over_another(
    memory: Path, questions: Path, tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path
) -> None:
    commands: list[tuple[Callable[[list[str]], int], Path, list[str]]] = [
        (pipelines.build_index.main, memory, ["--memory", str(memory), "--quiet"]),
        (pipelines.build_index.main, memory, ["--memory", str(memory), "--dry-run"]),
        (pipelines.build_index.main, questions, ["--memory", str(memory), "--quiet"]),
        (pipelines.build_examples.main, memory, ["--input", str(corpus_file)]),
        (pipelines.build_questions.command.main, memory, ["--input", str(corpus_file), "--format", "cloze", "--bm25"]),
        (
            pipelines.build_memory.command.main,
            questions,
            ["--input", str(corpus_file), "--checkpoint", str(tiny_checkpoint), "--overwrite"],
        ),
        (pipelines.compact.main, questions, ["--memory", str(memory), "--overwrite"]),
    ]
    for command, place, arguments in commands:
        before = files(place)
        with pytest.raises(InputError, match=f"holds {place.name.upper()}, which .* would destroy; it stays as it is"):
            command([*arguments, "--output", str(place)])
        assert files(place) == before


def test_what_is_no_artefact_or_of_the_same_kind_is_no_obstacle(tmp_path: Path, questions: Path) -> None:
    for text in ("", "{", "[]", '{"name": "an application"}'):
        (tmp_path / "manifest.json").write_text(text)
        assert not up_to_date(tmp_path, "INDEX", {})
    assert up_to_date(questions, "QUESTIONS", {})
    assert not up_to_date(questions, "QUESTIONS", {"other": 1})
