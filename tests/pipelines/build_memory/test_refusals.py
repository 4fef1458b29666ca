"""Arguments of the corpus command that are refused before any work, and dry runs."""

import json
import os
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.folders import sha256_file
from pipelines.build_memory.command import main
from pipelines.engines import runner
from pipelines.engines.runner import beam_options
from pipelines.job.locks import LOCK, locked
from tests.helpers.memory_command import Build, command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-flag=1"], "--no-such-flag: neither this job nor Beam knows"),
        (["--direct_running_mode=multi_processing"], "--direct_running_mode: no effect on --runner local"),
        (["stray.jsonl"], "stray.jsonl: neither an option"),
        (["--max-tokens=4"], "--max-tokens 4: expected at least 16"),
        (
            ["--max-tokens=5000"],
            r"the backbone has 2048 positions \(max_position_embeddings\), .*give at most 2041, or better 96",
        ),
        (["--max-tokens=2042"], "--max-tokens 2042: the backbone has 2048 positions"),
        (["--overlap-tokens=90"], "--overlap-tokens 90: expected 0 to 48"),
        (["--key-size=2"], "key_size is 2, expected M ≤ key_size ≤ M·D, here 4 to 128"),
        (["--num-shards=-1"], "--num-shards is -1; expected 0 or more"),
        (["--batch-tokens=0"], "--batch-tokens is 0; expected 1 or more"),
        (["--device=cuda"], "no CUDA device here"),
    ],
)
def test_bad_arguments_are_refused(
    build: Build, corpus_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(corpus_file, *arguments)
    assert not (tmp_path / "memory" / "manifest.json").exists()


def test_chunks_longer_than_the_checkpoint_was_trained_with_are_reported(
    build: Build, corpus_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(corpus_file, "--dry-run", "--max-tokens=96")
    assert not any("trained with" in message for message in caplog.messages)
    build(corpus_file, "--dry-run", "--max-tokens=2041")
    warning = "--max-tokens 2041: the checkpoint was trained with at most 96 tokens a chunk (max_document_tokens)"
    assert caplog.messages.count(warning) == 1


def test_no_input_no_checkpoint_no_place(
    build: Build, corpus_file: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(InputError, match="no such file"):
        build(tmp_path / "nothing-*.jsonl")
    with pytest.raises(InputError, match=r": a directory; give the files in it, as '.*/\*', quoted"):
        build(tmp_path)
    with pytest.raises(InputError, match="no finished CHECKPOINT"):
        main(command(str(corpus_file), tmp_path / "memory", tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"--output .*: cannot be written"):
        main(command(str(corpus_file), corpus_file / "memory", tiny_checkpoint))


def test_dry_run_writes_nothing(
    build: Build, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(corpus_file, "--dry-run")
    shown = json.loads(capsys.readouterr().out)
    assert shown["fingerprint"]["num_memory_tokens"] == 4
    assert shown["input"][0]["sha256"] == sha256_file(corpus_file)
    assert not (tmp_path / "memory").exists()


def test_two_jobs_at_one_place(build: Build, corpus_file: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "memory"), pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing there"):
        build(corpus_file)
    # A lock file that a killed job left behind holds nobody up.
    (tmp_path / "memory" / LOCK).write_text("process 1 on elsewhere")
    assert len(MemoryStore.open(build(corpus_file))) == 40


def test_a_runner_that_beam_does_not_know_is_reported() -> None:
    with pytest.raises(InputError, match=r"--runner Nope: Beam makes no pipeline for it .*give local"):
        runner.make_pipeline(beam_options([], "Nope", 1), "Nope")
