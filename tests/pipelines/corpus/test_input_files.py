"""Which files the paths and globs of a corpus name, in the corpus job and in the small commands."""

import os
from pathlib import Path

import pytest

from clara.data.input_files import expand
from clara.errors import InputError
from pipelines.corpus.splits import find_units
from tests.helpers.awkward import JSON, PARQUET
from tests.helpers.corpus_readers import EXPECTED, read


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("data [v2]", "Ärzte & Co (2024)", "home", "a*b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teil #1, 50%.jsonl").write_text(JSON["lines"])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORPORA", str(tmp_path / "Ärzte & Co (2024)"))
    return tmp_path


@pytest.mark.parametrize("file", ["*.jsonl", "teil #1, 50%.jsonl", "te[il]l*"])
@pytest.mark.parametrize("folder", ["data [v2]", "Ärzte & Co (2024)", "~", "$CORPORA", "${CORPORA}", "a*b", "./home"])
def test_paths_with_all_characters(place: Path, folder: str, file: str) -> None:
    (found,) = find_units([f"{folder}/{file}"], "auto")
    assert Path(found.path).read_text() == JSON["lines"]
    assert [Path(path).resolve() for path in expand([f"{folder}/{file}"])] == [Path(found.path)]
    os.chdir(place / "data [v2]")
    assert len(find_units([file], "auto")) == len(expand([file])) == 1


def test_a_link_is_what_it_leads_to_and_a_broken_one_is_refused(place: Path) -> None:
    (place / "link.jsonl").symlink_to(place / "home" / "teil #1, 50%.jsonl")
    assert read(place / "link.jsonl") == EXPECTED
    (place / "broken.jsonl").symlink_to(place / "nowhere")
    for look in (expand, lambda paths: find_units(paths, "auto")):
        with pytest.raises(InputError, match=r"broken\.jsonl'?: cannot be read .*correct the path"):
            look(["*.jsonl"])


def test_files_beside_data_are_left_out_and_reported(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "spark" / "_temporary").mkdir(parents=True)
    beside = ["_SUCCESS", "._SUCCESS.crc", ".part-0.crc", "README.md", "README_en.txt", "SHA256SUMS"]
    beside += ["part-0.jsonl.sha256", "data_$folder$", "_temporary/x.jsonl"]
    for name in beside:
        (place / "spark" / name).write_text("x")
    (place / "spark" / "part-0.jsonl").write_text(JSON["lines"])
    with caplog.at_level("WARNING"):
        assert [u.name for u in find_units(["spark/**"], "auto")] == expand(["spark/**"]) == ["spark/part-0.jsonl"]
    assert f"{len(beside)} matching files are no data by their names: spark/._SUCCESS.crc" in caplog.text
    # Whoever names one means it.
    assert expand(["spark/README.md", "spark/_SUC*"]) == ["spark/README.md", "spark/_SUCCESS"]
    with pytest.raises(InputError, match=r"no data by their names: spark/README\.md; give the name of one without \*"):
        expand(["spark/*.md"])


def test_queries_beside_a_corpus_are_no_documents(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "scifact").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (place / "scifact" / name).write_text(JSON["lines"])
    for pattern in ("scifact/*", "scif*/*.jsonl"):
        with caplog.at_level("WARNING"):
            assert [u.name for u in find_units([pattern], "auto")] == expand([pattern]) == ["scifact/corpus.jsonl"]
        assert "1 matching files are no data by their names: scifact/queries.jsonl" in caplog.text
    assert expand(["scifact/queries.jsonl"]) == expand(["scifact/queries*"]) == ["scifact/queries.jsonl"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 2), "2 of 3 files hub/train-…-of-3.parquet are there; number 1 is the first that is missing"),
        ((1, 2), "2 of 3 files hub/train-…-of-3.parquet are there; number 3 is the first"),
        ((0, 1, 2), ""),
        ((1, 2, 3), ""),
    ],
)
def test_shards_that_are_missing_are_reported(
    place: Path, caplog: pytest.LogCaptureFixture, numbers: tuple[int, ...], message: str
) -> None:
    (place / "hub").mkdir()
    for number in numbers:
        (place / "hub" / f"train-{number:05}-of-00003.parquet").write_bytes(PARQUET["strings"])
    with caplog.at_level("WARNING"):
        assert len(expand(["hub/*"])) == len(numbers)
    assert message in caplog.text
    assert bool(caplog.text) == bool(message)
    caplog.clear()
    assert len(expand([f"hub/train-{numbers[0]:05}-of-00003.parquet"])) == 1  # who names one means it
    assert caplog.text == ""


@pytest.mark.parametrize("pattern", ["pipe.jsonl", "*.jsonl", "/dev/fd/0", "/dev/null"])
def test_a_pipe_is_refused(place: Path, pattern: str) -> None:
    os.mkfifo(place / "pipe.jsonl")
    for look in (expand, lambda paths: find_units(paths, "jsonl")):
        with pytest.raises(InputError, match=r"(a pipe or device|no such file|cannot be read)"):
            look([pattern])
