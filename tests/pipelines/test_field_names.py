"""A corpus with other field names gives the same result as standard names, in every command that reads it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clara.data.examples import read_examples
from clara.data.questions import read_questions
from clara.data.records import document_id
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines import build_examples, select_corpus
from pipelines.build_memory import command as build_memory
from pipelines.build_questions import command as build_questions
from pipelines.synthesize import command as synthesize
from tests.helpers import towns

Main = Callable[[list[str]], int]
FLAGS = ["--id-field", "key", "--title-field", "heading", "--text-field", "body"]
NAMES = {"id": "key", "title": "heading", "text": "body"}
EXAMPLES, QUESTIONS = [build_examples.main], [build_questions.main, "--format", "cloze", "--pool-size", "6"]
SELECTED = [select_corpus.main, "--documents", "20"]


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """The same corpus twice; in the second one the other's names mean something else."""
    plain, named = towns.write(tmp_path / "plain.jsonl"), tmp_path / "named.jsonl"
    rows = [
        {NAMES.get(name, name): value for name, value in row.items()} | {"text": 3, "id": "x"} for row in lines(plain)
    ]
    named.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return plain, named


@pytest.mark.parametrize(
    ("given", "read"), [(EXAMPLES, read_examples), (QUESTIONS, read_questions)], ids=["examples", "questions"]
)
def test_the_same_artefact(
    tmp_path: Path, corpora: tuple[Path, Path], given: list, read: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    main, *arguments = given
    plain, named = (
        ["--input", str(corpus), "--output", str(tmp_path / f"of-{corpus.stem}"), *arguments] for corpus in corpora
    )
    assert main(plain) == 0
    assert main([*named, *FLAGS]) == 0
    assert read(tmp_path / "of-named") == read(tmp_path / "of-plain") != []
    # The names are of the recipe, and standard ones leave it as it was before there were flags.
    assert read_manifest(tmp_path / "of-named")["made_by"]["recipe"]["settings"]["fields"] == NAMES
    assert "fields" not in read_manifest(tmp_path / "of-plain")["made_by"]["recipe"]["settings"]
    capsys.readouterr()
    assert main([*named, *FLAGS, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["fields"] == NAMES
    assert main([*named, *FLAGS]) == 0
    assert "up to date" in capsys.readouterr().out


def test_the_same_selection_under_its_own_names(tmp_path: Path, corpora: tuple[Path, Path]) -> None:
    main, *arguments = SELECTED
    for corpus, flags in zip(corpora, ([], FLAGS), strict=True):
        assert main(["--input", str(corpus), "--output", str(tmp_path / f"of-{corpus.name}"), *arguments, *flags]) == 0
    chosen = lines(tmp_path / "of-plain.jsonl")
    assert [{name: row[other] for name, other in NAMES.items()} for row in lines(tmp_path / "of-named.jsonl")] == [
        {name: row[name] for name in NAMES} for row in chosen
    ]
    # What was chosen is read with the same flags; an id that was missing is there then.
    bare = tmp_path / "bare.jsonl"
    bare.write_text(
        "".join(json.dumps({"heading": row["title"], "body": row["text"]}) + "\n" for row in chosen), encoding="utf-8"
    )
    assert main(["--input", str(bare), "--output", str(tmp_path / "again.jsonl"), *arguments, *FLAGS]) == 0
    assert {row["key"] for row in lines(tmp_path / "again.jsonl")} == {
        document_id(row["title"], row["text"]) for row in chosen
    }


@pytest.mark.parametrize("given", [EXAMPLES, QUESTIONS, SELECTED], ids=["examples", "questions", "selection"])
def test_a_missing_field_name_is_reported(tmp_path: Path, corpora: tuple[Path, Path], given: list) -> None:
    main, *arguments = given
    with pytest.raises(InputError, match=r"plain\.jsonl:1: no `body` \(fields: description, id, text, title\)"):
        main(["--input", str(corpora[0]), "--output", str(tmp_path / "out"), *arguments, "--text-field", "body"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("main", "form"), [(build_examples.main, "scp"), (build_questions.main, "squad")])
def test_where_no_corpus_is_read_they_are_refused(
    tmp_path: Path, corpora: tuple[Path, Path], main: Main, form: str
) -> None:
    with pytest.raises(
        InputError, match=rf"--title-field heading: --format {form} has its own field names; leave it out"
    ):
        main(
            [
                "--input",
                str(corpora[0]),
                "--output",
                str(tmp_path / "out"),
                "--format",
                form,
                "--title-field",
                "heading",
            ]
        )


def test_plain_text_is_read_whatever_its_field_is_called(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Arlen sits on the Tamo, and its market was opened in 1700.", encoding="utf-8")
    for flags in ([], FLAGS):
        assert (
            build_examples.main(
                ["--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / f"out{len(flags)}"), *flags]
            )
            == 0
        )
    assert read_examples(tmp_path / "out0") == read_examples(tmp_path / f"out{len(FLAGS)}")


@pytest.mark.parametrize("command", [build_examples, build_memory, build_questions, select_corpus, synthesize])
def test_help_says_them_alike(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--id-field ID_FIELD field with the document's id; without it, "
        'the hash of its content [records.id_field = "id"]',
        "--title-field TITLE_FIELD field with the title, which goes in front of the text [records.title_field = "
        '"title"]',
        '--text-field TEXT_FIELD field with the text [records.text_field = "text"]',
    ):
        assert words in said
