"""The console command: an overview, every command by name, and help without heavy libraries."""

import subprocess
import sys
import tomllib

import pytest

from clara.config.load import fields, resolve
from clara.config.tree import Config
from infra import cli, config_page

HEAVY = (
    *("torch", "transformers", "faiss", "mlflow", "ray", "apache_beam", "deepspeed", "sentence_transformers"),
    *("pandas", "sklearn", "scipy"),
)


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        said = capsys.readouterr().out
        assert all(f"  {name} " in said for name in cli.COMMANDS)


def test_an_unknown_command_names_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    assert "there are train pretrain, train joint" in capsys.readouterr().err


def help_of(name: str) -> tuple[str, list[str]]:
    """The help of a command in a separate process, and the heavy libraries that it imported."""
    program = f"""
import contextlib, sys
from infra import cli
with contextlib.suppress(SystemExit):
    cli.main([*{name.split()!r}, "--help"])
print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.split()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_that_of_the_command_and_imports_nothing_heavy(name: str) -> None:
    text, heavy = help_of(name)
    assert text.split("usage: ")[1].startswith(f"clara {name} [")
    assert heavy == []


def test_the_reference_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_page.main(["--reference"]) == 0
    page = capsys.readouterr().out
    for key, _ in fields():
        assert f"`{key}`" in page or f"`[{key}]`" in page
    assert "| `retrieval.first_level` | integer, ≥ 1 | `200` |" in page


def test_the_resolved_tree_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_page.main(["infra/configs/demo.toml", "--set", "joint.steps=7"]) == 0
    read = resolve(tomllib.loads(capsys.readouterr().out), [])
    assert read.joint.steps == 7
    assert read.model.num_memory_tokens == 32
    assert resolve(tomllib.loads("\n".join(config_page.as_toml(Config()))), []) == Config()
