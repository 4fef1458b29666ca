"""`clara serve`: what it opens, what it refuses with one line, and that help and refusals load nothing heavy."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from clara.errors import InputError
from clara.model.checkpoint import save_checkpoint
from clara.serving import command
from infra import cli
from tests.helpers import tiny
from tests.helpers.evaluation_world import World

ROOT = Path(__file__).parents[3]


def arguments(world: World) -> list[str]:
    return [f"--checkpoint={world.checkpoint}", f"--memory={world.memory}", f"--index={world.index}", "--port=0"]


def test_a_dry_run_opens_everything(evaluation_artefacts: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", *arguments(evaluation_artefacts), "--dry-run"]) == 0
    assert "80 rows, fits " in capsys.readouterr().out


def test_it_refuses(
    evaluation_artefacts: World, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(evaluation_artefacts)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"serving\.port {port}: Address already in use; choose another"):
            command.main([*given[:3], f"--port={port}"])
    with pytest.raises(InputError, match=r"serving\.host 'nowhere\.invalid'"):
        command.main([*given, "--host=nowhere.invalid"])
    save_checkpoint(tiny.build_model(tiny_backbone, seed=9), tmp_path / "other", stage="pretrain", recipe={})
    with pytest.raises(InputError, match=r"compressor: expected [0-9a-f]{16}…, found"):
        command.main([f"--checkpoint={tmp_path / 'other'}", *given[1:]])
    with pytest.raises(InputError, match="registered models are resolved by the command clara"):
        command.main(["--checkpoint=models:/a@champion", *given[1:]])
    with pytest.raises(InputError, match=r"tracking\.uri is empty"):
        cli.main(["serve", "--checkpoint=models:/a@champion", *given[1:]])
    with pytest.raises(InputError, match=r"--max-waiting is -1; expected 0 or more"):
        command.main([*given, "--max-waiting=-1"])
    monkeypatch.setenv("CLARA_API_KEY", " ")
    with pytest.raises(InputError, match="CLARA_API_KEY: expected a key of ASCII characters"):
        command.main(given)


@pytest.mark.slow
def test_the_process_serves_with_a_key_and_ends_on_sigterm(evaluation_artefacts: World) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clara.serving", *arguments(evaluation_artefacts)],
        cwd=ROOT,
        env={**os.environ, "CLARA_API_KEY": "secret"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = []
        while not lines or "startup complete" not in lines[-1]["message"]:
            lines.append(json.loads(process.stderr.readline()))
        first = next(line for line in lines if line["message"] == "serving")
        assert first["access"] == "key in CLARA_API_KEY"
        headers = {"Authorization": "Bearer secret"}
        body = {"question": "Who?", "max_tokens": 2}
        assert httpx.post(f"{first['url']}/v1/answers", json=body, timeout=60).status_code == 401
        assert httpx.post(f"{first['url']}/v1/answers", json=body, headers=headers, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
