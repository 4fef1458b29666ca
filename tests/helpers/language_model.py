"""A small endpoint that speaks OpenAI's protocol over real HTTP, understands our prompts, and misbehaves on demand."""

import hashlib
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str
"""`429`, `500`, `slow`, `cut` (a body that ends early), `closed` (no answer), `shape` (JSON, no completion), `400` …"""


def sentences(text: str) -> list[str]:
    return re.findall(r"[^.!?]+[.!?]", text)


def sense(user: str) -> Any:
    """What a good model would say: it asks about each sentence by its number, but forgets the last one at first."""
    title = re.search(r"^TITLE: (.*)$", user, re.MULTILINE)[1]
    text = re.search(r"^TEXT: (.*)$", user, re.MULTILINE)[1]
    parts = sentences(text)
    about = {k: f"What does sentence {k} of {title} say?" for k in range(1, len(parts) + 1)}
    if "Write simple questions" in user:
        return {"questions": [about[k] for k in about if k < len(about) or k == 1]}
    if "Write demanding questions" in user:
        return {
            "questions": [
                f"What do sentence {k} and the one after it say about {title}?" for k in about if k < len(about)
            ]
        }
    if "Pairs so far, each" in user:
        return {"covered": True, "questions": []}
    if "Pairs so far" in user:
        missing = [question for question in about.values() if question not in user]
        return {"covered": not missing, "questions": missing}
    if "\nANSWER: " in user:
        answer = re.search(r"^ANSWER: (.*)$", user, re.MULTILINE)[1]
        return {"verdict": "correct" if answer in text else "incorrect"}
    if "\nQUESTION: " in user:
        found = re.search(r"^QUESTION: .*sentence (\d+)", user, re.MULTILINE)
        number = int(found[1]) if found else 0
        return {"answer": " ".join(parts[number - 1].split()[:4]) if 0 < number <= len(parts) else None}
    if "\nPARAPHRASE: " in user:
        return {"verdict": "yes" if "In other words" in user else "no"}
    return {"paraphrase": " ".join(["In other words:", *reversed(parts)])}


def key_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()


@dataclass
class Seen:
    """One request: when it came, which prompt, and what was done with it (`paid`, or the fault)."""

    at: float
    key: str
    done: str
    tokens: int = 0


@dataclass
class LanguageModel:
    """Answers like `reply`, with a fault where `fault(prompt, how many times it was asked before)` names one."""

    reply: Callable[[str], Any] = sense
    fault: Callable[[str, int], Fault] = lambda user, before: ""
    retry_after: str = "0.05"
    slow_seconds: float = 3.0
    latency_seconds: float = 0.0
    key: str = ""
    models: tuple[str, ...] = ("tiny",)
    seen: list[Seen] = field(default_factory=list)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    usage: bool = True
    body: Callable[[dict[str, Any]], Any] = lambda answer: answer
    url: str = ""
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self._asked: dict[str, int] = defaultdict(int)
        self._at_once = 0

    @property
    def paid(self) -> Counter[str]:
        """How many times each prompt was answered."""
        return Counter(s.key for s in self.seen if s.done == "paid")

    def handle(self, handler: "_Handler", body: dict[str, Any]) -> None:
        at, key = time.monotonic(), key_of(body)
        user = "\n\n".join(m["content"] for m in body["messages"])
        with self.lock:
            before, self._asked[key] = self._asked[key], self._asked[key] + 1
            self.bodies[key] = body
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        seen = Seen(at, key, self.fault(user, before) or "paid", len(user) // 4)
        with self.lock:
            self.seen.append(seen)
        try:
            self._answer(handler, user, seen)
        finally:
            with self.lock:
                self._at_once -= 1

    def _answer(self, handler: "_Handler", user: str, seen: Seen) -> None:
        fault = seen.done
        if fault.isdigit():
            headers = {"Retry-After": self.retry_after} if fault == "429" and self.retry_after else {}
            return handler.send(
                int(fault), {"error": {"message": f"status {fault} with key {self.key}", "code": None}}, headers
            )
        if fault == "shape":
            return handler.send(200, {"object": "list", "data": []})
        if fault == "quota":
            return handler.send(429, {"error": {"message": "no money", "code": "insufficient_quota"}})
        if fault == "closed":
            handler.close_connection = True
            return None
        if fault == "slow":
            time.sleep(self.slow_seconds)
        time.sleep(self.latency_seconds)
        content = self.reply(user)
        text = content if isinstance(content, str) or content is None else json.dumps(content)
        cut = isinstance(text, str) and text.endswith("<cut>")
        message = {"role": "assistant", "content": text.removesuffix("<cut>") if isinstance(text, str) else text}
        usage = {"prompt_tokens": seen.tokens, "completion_tokens": len(text or "") // 4 + 1}
        choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "choices": [choice],
            **({"usage": usage} if self.usage else {}),
        }
        return handler.send(200, self.body(answer), cut=fault == "cut")

    @contextmanager
    def running(self, port: int = 0) -> Iterator["LanguageModel"]:
        """Serve on the loopback."""
        server = _Server(("127.0.0.1", port), _Handler)
        server.daemon_threads = True
        server.model = self
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Clients that are killed, or have no more patience, are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        return

    def _allowed(self) -> bool:
        key = self.server.model.key
        given = self.headers.get("Authorization", "")
        if given == (f"Bearer {key}" if key else ""):
            return True
        self.send(401, {"error": {"message": f"wrong key: {given}, expected {key}"}})
        return False

    def do_GET(self) -> None:
        if self._allowed():
            self.send(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in self.server.model.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._allowed():
            self.server.model.handle(self, body)

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = data[: len(data) // 2] if cut else data
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
        except (BrokenPipeError, ConnectionResetError):  # the other side was killed, or has no more patience
            self.close_connection = True
