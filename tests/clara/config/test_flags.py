"""Flags as short names of keys: one default, one precedence, and no setting that is ignored in silence."""

import logging
from pathlib import Path

import pytest

from clara.config.flags import Command, add_setting
from clara.config.load import fields
from clara.config.tree import Config
from clara.errors import InputError


def command() -> Command:
    parser = Command("clara.something", "Does something.\n\npython -m clara.something --memory DIR")
    add_setting(parser, "memory", required=True)
    add_setting(parser, "retrieval.first_level", metavar="L")
    add_setting(parser, "index_job.verify", "--no-verify")
    add_setting(parser, "evaluation.splits")
    add_setting(parser, "evaluation.accept_stale", adds=True)
    add_setting(parser, "records.languages", "--language", nargs="+", adds=True)
    add_setting(parser, "corpus_job.codec")
    return parser


def test_a_flag_has_the_trees_default_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    options = command().parse_args(["--memory", "m"])
    assert options.config == Config(memory="m")
    assert (options.first_level, options.verify, options.splits) == (200, True, ["unseen", "seen"])
    with pytest.raises(SystemExit, match="0"):
        command().parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "computed [retrieval.first_level = 200]" in said
    assert "--no-verify switch off: read every byte" in said
    assert "--codec {float16,int8,int4,pq4,pq8}" in said


def test_later_settings_win_and_all_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('memory = "of the file"\n[retrieval]\nfirst_level = 30\n')
    assert command().parse_args(["--config", str(file)]).first_level == 30
    both = ["--config", str(file), "--set", "retrieval.first_level=40", "--first-level", "50"]
    options = command().parse_args(both)
    assert (options.first_level, options.memory) == (50, "of the file")
    assert command().parse_args([*both, "--set", "retrieval.first_level=60"]).config.retrieval.first_level == 60


def test_lists_are_comma_separated_or_repeated() -> None:
    given = ["--memory=m", "--splits", "seen, train", "--accept-stale", "a", "--accept-stale", "b"]
    options = command().parse_args([*given, "--language", "en", "de", "--language", "fr", "--no-verify"])
    assert (options.splits, options.accept_stale, options.language) == (
        ["seen", "train"],
        ["a", "b"],
        ["en", "de", "fr"],
    )
    assert options.config.evaluation.accept_stale == ("a", "b")
    assert not options.config.index_job.verify


def test_what_is_required_may_come_from_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command().parse_args(["--set", "memory=m"]).memory == "m"
    for given in ([], ["--memory="]):
        with pytest.raises(SystemExit, match="2"):
            command().parse_args(given)
        assert "the following arguments are required: --memory" in capsys.readouterr().err


def test_unknown_arguments_are_returned_where_an_engine_takes_them() -> None:
    options, rest = command().parse_known_args(["--memory", "m", "--project=p"])
    assert (options.memory, rest) == ("m", ["--project=p"])


def test_what_a_command_does_not_use_is_refused_or_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"--set joint.steps: python -m clara.something does not use this key"):
        command().parse_args(["--memory=m", "--set", "joint.steps=3"])
    file = tmp_path / "run.toml"
    file.write_text("[retrieval]\nfirst_level = 30\nfactory = 'Flat'\n[joint]\nsteps = 3\n[joint.refresh]\nrows = 2\n")
    with caplog.at_level(logging.INFO):
        command().parse_args(["--memory=m", "--config", str(file)])
    assert "does not use these settings of the file: joint, retrieval.factory" in caplog.text


def test_a_bad_value_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(InputError, match=r"^--first-level is 0; expected 1 or more$"):
        command().parse_args(["--memory=m", "--first-level=0"])


def test_the_program_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command().format_help().startswith("usage: python -m clara.something ")
    monkeypatch.setattr("sys.argv", ["clara something"])
    assert command().format_help().startswith("usage: clara something ")
    assert "\nclara something --memory DIR\n" in command().format_help()


@pytest.mark.parametrize("key", [key for key, field in fields() if "." in key])
def test_every_key_can_be_a_flag(key: str) -> None:
    field = dict(fields())[key]
    if isinstance(field.annotation, type) and issubclass(field.annotation, (bool, int, float, str)):
        parser = Command("clara.something", "")
        add_setting(parser, key)
        assert f"[{key}" in "".join(parser.format_help().split())
