"""Files for `serve deploy` are checked without Ray: the shipped one is right, and what is wrong has one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clara.errors import InputError
from infra.ray import serve_config
from infra.ray.serve_config import check, flags_of, settings_of

SHIPPED = Path(serve_config.__file__).parent / "serve.yaml"


def test_the_shipped_file_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_config.main([str(SHIPPED)]) == 0
    assert capsys.readouterr().out == "clara: 2 to 8 replicas, 72 requests in each\n"


def test_arguments_are_the_flags_of_the_service() -> None:
    given = {"checkpoint": "/a", "memory": "gs://b/m", "max_running": 3, "follow": True, "verify": False}
    flags = flags_of(given | {"set": ["serving.max_waiting=5"]})
    expected = ["--checkpoint=/a", "--memory=gs://b/m", "--max-running=3", "--follow", "--set=serving.max_waiting=5"]
    assert flags == expected
    settings = settings_of(flags)
    assert (settings.max_running, settings.max_waiting, settings.follow) == (3, 5, True)
    assert (
        settings_of(["--model=models:/towns@champion", "--tracking-uri=http://a", "--max-running=2"]).max_running == 2
    )


def edit(content: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        content = content[int(part) if part.isdigit() else part]
    content[last] = value


_SERVICE, _ARGS = "applications.0.deployments.0", "applications.0.args"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("applications", [], "no application has import_path: infra.ray.serving:application"),
        (f"{_ARGS}.port", 80, "args: port is set by http_options"),
        (f"{_ARGS}.memory", "runs/memory", "memory is 'runs/memory'; a replica runs in another directory"),
        (f"{_ARGS}.evaluation", "runs/evaluation", "evaluation is 'runs/evaluation'; a replica runs in another"),
        (f"{_ARGS}.documents", {"a": 1}, "args: documents is .*expected a text"),
        (f"{_ARGS}.max_runing", 3, "are no flags of clara serve"),
        (f"{_ARGS}.max_running", 0, "--max-running is 0; expected 1 or more"),
        (f"{_ARGS}.set", ["launch.gpu=true"], "launch.gpu"),
        (f"{_ARGS}.index", "", "index"),
        (f"{_ARGS}.max_running", 4, r"max_ongoing_requests is 72; expected .* = 68"),
        (
            f"{_SERVICE}.autoscaling_config.target_ongoing_requests",
            100,
            "target_ongoing_requests is 100; expected up to",
        ),
        (f"{_SERVICE}.graceful_shutdown_timeout_s", 20, "expected at least serving.request_seconds = 60"),
    ],
)
def test_what_is_wrong_is_said(path: str, value: Any, message: str, tmp_path: Path) -> None:
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    edit(content, path, value)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=rf"serve\.yaml: .*{message}"):
        check(tmp_path / "serve.yaml")


@pytest.mark.parametrize("write", [lambda f: f.write_bytes(b"\xff"), lambda f: f.write_text("a: ["), lambda f: None])
def test_what_cannot_be_read_is_said(write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / "serve.yaml")
    with pytest.raises(InputError, match=r"serve\.yaml: .*; expected a file for serve deploy"):
        check(tmp_path / "serve.yaml")
