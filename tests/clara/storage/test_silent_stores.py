"""Stores that don't answer: commands report that they wait, end in time, and recognise missing credentials."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.storage import retry
from clara.storage.base import StorageError
from clara.storage.bucket import Bucket
from clara.storage.retry import PATIENCE
from pipelines.corpus.splits import find_units
from pipelines.engines.names import LOCAL
from pipelines.engines.runner import beam_options
from tests.helpers import stores


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without credentials, files or services that have some, whose process has no client of a store."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    stores.forget_clients()
    beam_options([], LOCAL, 1)


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_missing_credentials_are_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(
        InputError, match="no credentials for S3 on this machine; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        find_units(["s3://nobucket/x.jsonl"], "auto")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match=r"nobody.*AWS_PROFILE to a profile"):
        find_units(["s3://nobucket/x.jsonl"], "auto")
    assert time.monotonic() - began < 120, "Beam's own tries take ten minutes"


@pytest.mark.slow  # a first request on a busy machine takes seconds, in which nothing is reported yet
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_silent_store_is_waited_for_as_long_as_configured_and_reported(
    kind: str, deaf: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = {
        "AWS_ENDPOINT_URL": deaf,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "STORAGE_EMULATOR_HOST": deaf,
        PATIENCE: "5",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "_REQUEST_SECONDS", 0.5)
    with pytest.raises(StorageError, match=f"--input {kind}://nobucket/x.jsonl: the store has not answered for 5 s"):
        find_units([f"{kind}://nobucket/x.jsonl"], "auto")
    with pytest.raises(StorageError, match="the store has not answered for 5 s"):
        Bucket(f"{kind}://nobucket/folder").read("x")
    assert [
        message.partition(" (")[0].partition(": ")[2] for message in caplog.messages if "does not answer" in message
    ] == ["the store does not answer; retrying for 5 s"] * 2
