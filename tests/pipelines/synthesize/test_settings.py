"""The settings of a synthesis: flags, keys and files say the same, and recipes are those of earlier EXAMPLES."""

import json
from pathlib import Path
from typing import Any

import pytest

from clara.data.examples import FILE
from clara.errors import InputError
from clara.storage.folders import sha256_file
from clara.storage.manifest import hash_of, read_manifest
from pipelines.synthesize.command import main
from tests.helpers.language_model import LanguageModel
from tests.helpers.synthesis_command import Run, command

FLAGS = [
    *("--no-system-role", "--kinds=paraphrase,simple", '--extra-body={"top_p": 0.9, "a": null}', "--temperature=0.5"),
    *("--coverage=off", "--max-rounds=0", "--max-questions=3", "--attempts=1", "--max-reply-tokens=99"),
    *("--max-tokens=64", "--overlap-tokens=8"),
]
FILE_OF_FLAGS = """
[synthesis]
kinds = ["paraphrase", "simple"]
extra_body = '{"top_p": 0.9, "a": null}'
coverage = "off"
max_rounds = 0
max_questions = 3
attempts = 1
max_reply_tokens = 99
[synthesis.endpoint]
name = "x"
system_role = false
temperature = 0.5
[corpus_job]
overlap_tokens = 8
[model]
max_document_tokens = 64
"""


def planned(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    given = [str(argument) for argument in arguments]
    assert main(["--model", "http://localhost:1/v1", "--output", "out", "--dry-run", *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    return {name: value for name, value in shown.items() if name not in ("input", "output", "estimated", "prompts")}


def test_recipes_are_those_of_the_command_before_its_settings_were_keys(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hashes are of what the command printed then."""
    plain = planned(capsys, "--input", corpus, "--model-name", "tiny")
    assert plain["model"] == {
        **{"name": "tiny", "temperature": 0.0, "max_reply_tokens": 1024},
        **{"extra_body": {}, "system_role": True},
    }
    assert hash_of(plain) == "c103d1007b4155187f98adfc26b423ba828642af70f32fb15abe18f7024fc695"
    changed = planned(capsys, "--input", corpus, "--model-name", "x", *FLAGS)
    assert hash_of(changed) == "32f0fb123f084c57de01cedadc3bbaf086398ba0ec3fef24031be24a4a2e3dda"
    (tmp_path / "run.toml").write_text(FILE_OF_FLAGS, encoding="utf-8")
    assert planned(capsys, "--input", corpus, "--config", tmp_path / "run.toml") == changed
    assert planned(capsys, "--input", corpus, "--config", tmp_path / "run.toml", "--max-rounds=1") != changed


def test_a_settings_file_finds_examples_of_flags_up_to_date(
    run: Run, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(
        'output = "' + str(clean) + '"\n[synthesis]\nkinds = ["paraphrase", "complex", "simple"]\n'
        '[synthesis.endpoint]\nname = "tiny"\nconcurrency = 3\n[synthesis.folder]\ncopies = 2\n',
        encoding="utf-8",
    )
    before = sha256_file(clean / FILE)
    model = LanguageModel(url="http://localhost:1/v1")  # nobody is there
    given = read_manifest(clean)["made_by"]["recipe"]["input"][0]["path"]
    assert main(command(Path(given), clean, model, f"--config={tmp_path / 'run.toml'}")) == 0
    assert "up to date" in capsys.readouterr().out
    assert sha256_file(clean / FILE) == before


def test_fields_of_a_request_can_be_a_table(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text("[synthesis.extra_body]\ntop_p = 0.9\n", encoding="utf-8")
    wanted = {"top_p": 0.9, "seed": 3}
    found = planned(
        capsys, "--input", corpus, "--config", tmp_path / "run.toml", "--set", "synthesis.extra_body.seed=3"
    )
    assert found["model"]["extra_body"] == wanted
    found = planned(capsys, "--input", corpus, "--set", f"synthesis.extra_body={json.dumps(wanted)}")
    assert found["model"]["extra_body"] == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "synthesis.folder.copies=2"], "--set synthesis.folder.copies: is of use to a folder's model only"),
        (["--batch-tokens=9"], "--batch-tokens: is of use to a folder's model only, and --model is http://"),
        (["--set", "synthesis.kinds=['poems']"], r"synthesis\.kinds\.0 is 'poems': .*'simple', 'complex' or"),
        (["--set", "synthesis.endpoint.tries=0"], r"synthesis\.endpoint\.tries is 0: .*greater than or equal to 1"),
        (["--set", "synthesis.endpoint.trys=3"], r"synthesis\.endpoint\.trys: unknown key; near ones: .*tries"),
        (["--set", "synthesis.extra_body=[]"], r"synthesis\.extra_body is \[\]: expected a JSON object"),
        (["--max-reply-tokens=3"], "--max-reply-tokens is 3; expected 16 or more"),
        (["--set", "joint.steps=3"], "does not use this key"),
    ],
)
def test_bad_settings_are_refused(corpus: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = command(corpus, tmp_path / "out", LanguageModel(url="http://localhost:1/v1"), "--dry-run", *arguments)
    with pytest.raises(InputError, match=message):
        main(given)
