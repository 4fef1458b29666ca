"""A dry run, and a run whose artefact is up to date, answer without the libraries that the work itself needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra import cli
from tests.helpers.memories import random_memory, write_memory

HEAVY = (
    *("torch", "transformers", "mlflow", "ray", "apache_beam", "deepspeed", "sentence_transformers", "openai"),
    *("sklearn", "scipy"),
)


def run(*arguments: str) -> tuple[str, list[str]]:
    """The output of a command in a separate process, and the heavy libraries that it imported."""
    program = f"""
import sys
from infra import cli
assert cli.main({list(arguments)!r}) == 0
print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.split()


def test_build_index_plans_and_finds_its_index_up_to_date_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(20))
    arguments = ["build-index", f"--memory={memory}", f"--output={tmp_path / 'index'}", "--queries=0", "--quiet"]
    planned, heavy = run(*arguments, "--dry-run")
    assert '"rows": 20' in planned
    assert heavy == []
    monkeypatch.setattr(sys, "argv", ["clara"])  # restores what the console command writes there
    assert cli.main(arguments) == 0
    found, heavy = run(*arguments)
    assert "INDEX of 20 rows" in found
    assert heavy == []


@pytest.mark.parametrize("near_duplicates", [(), ("--near-duplicates=0.9",)], ids=["all", "without near duplicates"])
def test_synthesize_estimates_without_beam_torch_and_openai(tmp_path: Path, near_duplicates: tuple[str, ...]) -> None:
    corpus = tmp_path / "corpus.jsonl"
    text = " ".join(f"word{n}" for n in range(60))
    texts = [text, text, f"{text} and more", "Arlen sits on the Tamo.", "Beyond the limit."]
    corpus.write_text("".join(f'{{"id": "{n}", "text": "{t}"}}\n' for n, t in enumerate(texts)), encoding="utf-8")
    arguments = ["synthesize", f"--input={corpus}", f"--output={tmp_path / 'examples'}", "--limit=4"]
    planned, heavy = run(
        *arguments, "--model=http://localhost:1/v1", "--max-tokens=2000", "--dry-run", *near_duplicates
    )
    assert json.loads(planned)["estimated"]["chunks"] == (2 if near_duplicates else 3)
    assert set(heavy) <= ({"scipy"} if near_duplicates else set())  # of datasketch


def test_build_memory_finds_its_memory_up_to_date_without_torch(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "text": "Arlen sits on the Tamo."}\n', encoding="utf-8")
    arguments = ["build-memory", f"--input={corpus}", f"--output={tmp_path / 'memory'}", "--num-workers=1"]
    arguments += [f"--checkpoint={tiny_checkpoint}", "--num-shards=1"]
    monkeypatch.setattr(sys, "argv", ["clara"])  # restores what the console command writes there
    assert cli.main(arguments) == 0
    found, heavy = run(*arguments)
    assert "up to date" in found
    assert heavy == []
