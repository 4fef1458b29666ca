"""A version that is deleted between two calls to the server gives one line; the server is a stub of the REST API."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest

from clara.errors import InputError
from training import promote
from training.registry.registered_system import flags_of
from training.registry.resolve import local_checkpoint

VERSION = {
    "name": "towns",
    "version": "1",
    "run_id": "r1",
    "status": "READY",
    "source": "models:/m-1",
    "creation_timestamp": 1,
    "last_updated_timestamp": 1,
    "tags": [{"key": "clara.checkpoint_hash", "value": "0" * 64}, {"key": "clara.system", "value": "before"}],
}
GONE = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Model Version (name=towns, version=1) not found"}


class Stub(BaseHTTPRequestHandler):
    """Lists the version, and has no version when it is asked for it."""

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if path.endswith("/model-versions/search"):
            self.reply(200, {"model_versions": [VERSION]})
        elif path.endswith("/experiments/search"):
            self.reply(200, {"experiments": []})
        elif path.endswith("/registered-models/get"):
            model = {"name": "towns", "creation_timestamp": 1, "last_updated_timestamp": 1}
            self.reply(200, {"registered_model": {**model, "aliases": [{"alias": "champion", "version": "1"}]}})
        else:
            self.reply(404, GONE)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def reply(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    stub = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=stub.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{stub.server_port}"
    stub.shutdown()
    thread.join()
    stub.server_close()


@pytest.mark.parametrize("model", ["models:/towns@champion", "models:/towns/1"])
@pytest.mark.parametrize("read", [local_checkpoint, flags_of], ids=["checkpoint", "served"])
def test_a_version_that_is_gone_when_it_is_read(server: str, model: str, read: Callable[[str, str], object]) -> None:
    with pytest.raises(InputError, match=r"models:/towns.*not found") as found:
        read(model, server)
    assert "\n" not in str(found.value)


def test_a_version_that_is_gone_when_it_is_promoted(server: str) -> None:
    arguments = ["--name", "towns", "--version", "1", "--tracking-uri", server]
    with pytest.raises(InputError, match=r"towns version 1.*register it again|does not answer, or refuses") as found:
        promote.main(arguments)
    assert "\n" not in str(found.value)
