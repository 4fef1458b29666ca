"""Object stores on loopback: emulators of S3 and GCS behind a proxy that injects faults.

The S3 emulator (moto) knows conditional writes, but looks and writes in two steps, between which another one may come:
the proxy lets one in at a time. The emulator of GCS passes over `ifGenerationMatch`, so the proxy keeps that promise
for it.
"""

import http.client
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import fsspec

BUCKET = "bucket"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass
class Proxy:
    """Passes requests on, and refuses them while `down` says so.

    Attributes:
        backend: port of the store behind it.
        port: of the loopback.
        down: method and path of a request → whether the store is away for it, which is answered with 503.
        refused: how many requests were.
        log: method and path of every request.
    """

    backend: int
    down: Callable[[str, str], bool] = lambda method, path: False
    port: int = 0
    refused: int = 0
    log: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def away(self, method: str, path: str) -> bool:
        """Whether a request is refused."""
        with self.lock:
            self.log.append((method, path))
            refuse = self.down(method, path)
            self.refused += refuse
        return refuse


class _Handler(BaseHTTPRequestHandler):
    """One request; `proxy` and `creating` are set by a subclass."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    creating: threading.Lock

    def log_message(self, *_: object) -> None:
        return

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = (
            {name.lower(): value for name, value in headers}.get("content-length", "0")
            if self.command == "HEAD"
            else str(len(body))
        )
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.backend, timeout=60)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _pass_on(self) -> None:
        body = self._body()
        if self.proxy.away(self.command, self.path):
            self._reply(503, [("Content-Type", "text/plain")], b"away")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP - {"host"}}
        headers["Content-Length"] = str(len(body))
        if self.headers.get("If-None-Match"):
            with self.creating:
                self._reply(*self._ask(self.command, self.path, body, headers))
            return
        if "ifGenerationMatch=0" not in self.path:
            self._reply(*self._ask(self.command, self.path, body, headers))
            return
        with self.creating:
            bucket = self.path.partition("/b/")[2].partition("/")[0]
            named = re.search(rb'"name": ?"([^"]+)"', body)
            assert named is not None, body[:200]
            status, _, _ = self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(named[1].decode(), safe='')}", b"", {})
            if status == 200:
                self._reply(
                    412,
                    [("Content-Type", "application/json")],
                    b'{"error": {"code": 412, "message": "conditionNotMet"}}',
                )
            else:
                self._reply(*self._ask(self.command, self.path, body, headers))

    def do_GET(self) -> None:
        self._pass_on()

    do_PUT, do_POST, do_DELETE, do_HEAD = do_GET, do_GET, do_GET, do_GET  # noqa: N815 (the server looks for these names)


@contextmanager
def proxied(backend: int) -> Iterator[Proxy]:
    """A proxy in front of a server of the loopback."""
    proxy = Proxy(backend)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy, "creating": threading.Lock()})
    )
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_emulator() -> Iterator[int]:
    """The port of an S3 emulator with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket=BUCKET)
        yield port
    finally:
        server.stop()


@contextmanager
def gcs_emulator() -> Iterator[int]:
    """The port of a GCS emulator with one bucket."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        yield server._api._httpd.server_address[1]
    finally:
        server.stop()


@dataclass(frozen=True)
class Store:
    """A store that runs: the URL of its bucket, the proxy in front of it, and the environment that leads there."""

    url: str
    proxy: Proxy
    environment: dict[str, str]


def forget_clients() -> None:
    """Have the next call make a new client, for the store that the environment names then."""
    os.environ.setdefault(
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
    )  # as `clara.storage.bucket.file_system` does, which may not have run yet
    for kind in ("s3", "gs"):
        fsspec.get_filesystem_class(kind).clear_instance_cache()


@contextmanager
def running(kind: str) -> Iterator[Store]:
    """A store of kind `s3` or `gs`."""
    for chatty in ("werkzeug", "gcp_storage_emulator"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    with (s3_emulator if kind == "s3" else gcs_emulator)() as port, proxied(port) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        if kind == "s3":
            environment = {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        else:
            environment = {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"}
        yield Store(f"{kind}://{BUCKET}", proxy, environment)
