"""The console command: an overview, every command by name, and help without heavy libraries."""

import json
import subprocess
import sys
import tomllib

import pytest

from clara.config.flags import Command
from clara.config.load import fields, resolve
from clara.config.section import Section
from clara.config.tree import READ_BY, Config
from clara.errors import InputError
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
    assert "there are train pretrain, train joint, train phases" in capsys.readouterr().err


@pytest.fixture(scope="module")
def help_pages() -> dict[str, tuple[str, list[str]]]:
    """The help of each command, and the heavy libraries that it imported; all run in one separate process."""
    program = f"""
import contextlib, io, json, sys
from infra import cli
pages = {{}}
for name in cli.COMMANDS:
    before = set(sys.modules)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as page:
        cli.main([*name.split(), "--help"])
    pages[name] = page.getvalue(), [m for m in {HEAVY!r} if m in set(sys.modules) - before]
print(json.dumps(pages))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pages: dict[str, tuple[str, list[str]]] = json.loads(done.stdout)
    return pages


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_that_of_the_command_and_imports_nothing_heavy(
    name: str, help_pages: dict[str, tuple[str, list[str]]]
) -> None:
    text, heavy = help_pages[name]
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


def test_the_table_of_readers_is_that_of_the_commands() -> None:
    read_by: dict[str, set[str]] = {}
    for name, command in cli.COMMANDS.items():
        parser = getattr(sys.modules[command().__module__], "parser", None)
        if parser and isinstance(made := parser(), Command):
            for key in made.used:
                read_by.setdefault(key.partition(".")[0], set()).add(name)
    sections = {key: readers for key, readers in read_by.items() if key in READ_BY}
    sections["joint"].remove("train pretrain")  # reads joint.checkpoint_every only
    assert sections == {key: set(readers) for key, readers in READ_BY.items()}
    assert set(READ_BY) == {name for name, field in Config.model_fields.items() if isinstance(field.default, Section)}


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        (
            "train pretrain",
            "joint.steps=3",
            "not use this key; leave it out; this section is read by "
            "clara train joint, clara train phases, clara fit-score, clara demo, clara plan$",
        ),
        ("train joint", "instruct.steps=3", "this section is read by clara train pretrain, clara demo$"),
        ("train joint", "examples=DIR", "does not use this key; leave it out; it uses "),
        (
            "build-index --memory=m --output=o",
            "cloze.salt=x",
            "read by clara select-corpus, clara build-questions, ",
        ),
        (
            "wiki-corpus --output=o",
            "joint.steps=3",
            "read by clara train joint, clara train phases, clara fit-score, clara demo, clara plan$",
        ),
    ],
)
def test_a_key_that_a_command_does_not_read_is_refused(
    name: str, key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["clara"])  # restores what the console command writes there
    with pytest.raises(InputError, match=message):
        cli.main([*name.split(), "--set", key])


def test_settings_of_the_other_stage_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["clara"])
    given = ["train", "pretrain", "--set", "stage=pretrain", "--set", "instruct.steps=3"]
    with pytest.raises(InputError, match=r"instruct\.steps: stage is 'pretrain', and only stage 'instruct' reads"):
        cli.main(given)
