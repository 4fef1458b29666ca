"""A small embeddings endpoint over real HTTP whose vectors are drawn by the hash of a text, and that misbehaves."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.language_model import Fault, LanguageModel

SIZE = 8


def vector_of(text: str, size: int = SIZE) -> NDArray[np.float64]:
    """What the endpoint returns: no unit vector."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=size) * 3


def unit_vectors(texts: list[str], size: int = SIZE) -> NDArray[np.float64]:
    vectors = np.array([vector_of(text, size) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass
class EmbeddingEndpoint(LanguageModel):
    """Embeds, with a fault where `fails(texts, number of the request)` names one; `edit` changes the items."""

    size: int = SIZE
    fails: Callable[[list[str], int], Fault] = lambda texts, number: ""
    edit: Callable[[list[dict[str, Any]]], Any] = lambda items: items
    requests: list[dict[str, Any]] = field(default_factory=list)
    texts: Counter[str] = field(default_factory=Counter)
    """How many times each text was embedded."""

    def handle(self, handler: Any, body: dict[str, Any]) -> None:
        with self.lock:
            self.requests.append(body)
            number = len(self.requests)
        fault = self.fails(body["input"], number)
        if fault.isdigit():
            error = {"message": f"status {fault} with key {self.key}", "code": None}
            return handler.send(int(fault), {"error": error}, {"Retry-After": "0.01"})
        if fault == "closed":
            handler.close_connection = True
            return None
        if fault == "slow":
            time.sleep(self.slow_seconds)
        with self.lock:
            self.texts.update(body["input"])
        size = body.get("dimensions", self.size)
        items = [{"index": n, "embedding": vector_of(text, size).tolist()} for n, text in enumerate(body["input"])]
        data = self.edit(items[::-1])  # in no particular order
        answer = {"object": "list", "data": data} if isinstance(data, list) else data
        return handler.send(200, answer, cut=fault == "cut")
