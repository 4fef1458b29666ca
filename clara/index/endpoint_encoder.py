"""Embeddings of a model behind an OpenAI-compatible endpoint, checked number by number."""

import base64
import functools
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import tenacity
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from clara.arrays import Ids
from clara.config.tree import Retrieval
from clara.data.records import texts_of
from clara.endpoints import cleaned, key_of, retry_after
from clara.errors import InputError
from clara.memory.store import MemoryStore

if TYPE_CHECKING:
    import openai

_BATCH_TEXTS = 32  # the most that some servers take
_BLOCK_ROWS = 256
_TRIES = 5
_RETRY_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0
_KEPT_QUESTIONS = 65_536


class _AgainError(Exception):
    """A failure that may pass; `after` seconds, where the other side says."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class EndpointEncoder:
    """An embedding model behind an endpoint. An `Encoder`; its similarity is the cosine."""

    block_rows = _BLOCK_ROWS

    def __init__(self, settings: Retrieval, model_hash: str) -> None:
        """No request is sent yet."""
        self.folder, self.hash = settings.dense_model, model_hash
        self._settings, self._size = settings, settings.dense_size
        self._key = key_of(settings.dense_key_variable)
        self._asked: dict[str, Tensor] = {}

    def description(self) -> dict[str, Any]:
        """See `Encoder`. Embeds one word where the size is not known.

        Raises:
            InputError: the endpoint fails.
        """
        if not self._size:
            self._embed(["size"], ["a text that asks for the size"])
        return {
            "model": self.hash,
            "prompts": {"query": self._settings.dense_question_prompt, "document": self._settings.dense_text_prompt},
            "default_prompt": "",
            "similarity": "cosine",
            "size": self._size,
        }

    def embed_rows(self, store: MemoryStore, rows: Ids) -> Tensor:
        """See `Encoder`."""
        prompt = self._settings.dense_text_prompt
        texts = [prompt + text for text in texts_of(store.records(rows))]
        return self._embed(texts, [f"row {row}" for row in rows.tolist()])

    def embed_questions(self, questions: Sequence[str]) -> Tensor:
        """See `Encoder`. Questions that were asked before are not paid again."""
        if len(self._asked) > _KEPT_QUESTIONS:
            self._asked.clear()
        if new := [question for question in dict.fromkeys(questions) if question not in self._asked]:
            prompt = self._settings.dense_question_prompt
            vectors = self._embed([prompt + question for question in new], [f"question {q!r}" for q in new])
            self._asked.update(zip(new, vectors, strict=True))
        return torch.stack([self._asked[question] for question in questions])

    def similarity(self, questions_BE: Tensor, rows_NE: Tensor) -> Tensor:
        """The cosine `[B, N]`."""
        return normalize(questions_BE) @ normalize(rows_NE).T

    def vectors_of(self, store: MemoryStore) -> Tensor:
        """Refuse: every run would pay for all rows.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"--dense-model {self.folder!r}: vectors of an endpoint are read from an INDEX, so that each is paid once, "
            f"and there is no INDEX of {store.name} with vectors of this model (name, prompts and size count); build "
            "one: python -m pipelines.build_index --dense-model URL --dense-name NAME"
        )

    # --- requests ---

    @functools.cached_property
    def _client(self) -> "openai.OpenAI":
        try:
            import openai  # takes a second to import
        except ModuleNotFoundError as error:
            raise InputError(
                f"{error.name}: not installed, and --dense-model with an endpoint needs it; run: "
                "pip install 'clara-rag[endpoint]'"
            ) from error
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request, else
        return openai.OpenAI(
            base_url=self.folder,
            api_key=self._key or "none",
            max_retries=0,  # tries are ours
            timeout=self._settings.dense_seconds,
        )

    def _embed(self, texts: Sequence[str], labels: Sequence[str]) -> Tensor:
        """Unit vectors `[n, E]` of texts as they are sent, in float32.

        Args:
            texts: with their prompts.
            labels: what a message calls each of them.

        Raises:
            InputError: the endpoint fails, or returns something else than a vector of the one size for each text.
        """
        batches = [slice(begin, begin + _BATCH_TEXTS) for begin in range(0, len(texts), _BATCH_TEXTS)]
        _ = self._client  # made here, and not by several threads
        with ThreadPoolExecutor(self._settings.dense_concurrency) as pool:
            found = list(pool.map(lambda of: self._batch(texts[of], labels[of]), batches))
        for vectors, batch in zip(found, batches, strict=True):
            for vector, label in zip(vectors, labels[batch], strict=True):
                self._size = self._size or len(vector)
                if len(vector) != self._size:
                    self._refuse(
                        [label],
                        f"returned a vector of {len(vector)} numbers, expected {self._size} as for other texts",
                        "check retrieval.dense_size and the model of this name",
                    )
        whole = np.array([vector for part in found for vector in part], np.float64)
        norms = np.linalg.norm(whole, axis=1, keepdims=True)
        unit = np.divide(whole, norms, out=np.zeros_like(whole), where=norms != 0)
        return torch.from_numpy(unit.astype(np.float32))

    def _batch(self, texts: Sequence[str], labels: Sequence[str]) -> list[NDArray[np.float32]]:
        backoff = tenacity.wait_exponential_jitter(_RETRY_SECONDS, _LONGEST_WAIT_SECONDS, jitter=_RETRY_SECONDS)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(backoff(state), min(getattr(error, "after", 0.0), _LONGEST_WAIT_SECONDS))

        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_AgainError),
            reraise=True,
        )
        try:
            body = tries(self._send, texts, labels)
        except _AgainError as error:
            self._refuse(
                labels,
                f"failed {_TRIES} times, the last time with: {error}",
                "start it, give it more time with retrieval.dense_seconds, or ask less at once with "
                "retrieval.dense_concurrency",
            )
        return self._vectors(body, labels)

    def _send(self, texts: Sequence[str], labels: Sequence[str]) -> Any:
        """The body of one answer.

        Raises:
            _AgainError: a failure that may pass.
            InputError: the endpoint refuses.
        """
        import openai

        settings = self._settings
        body: dict[str, Any] = {"model": settings.dense_name, "input": list(texts), "encoding_format": "float"}
        if settings.dense_size:
            body["dimensions"] = settings.dense_size
        headers: dict[str, Any] = {} if self._key else {"Authorization": openai.Omit()}
        try:
            # The body is ours as it is, and the answer is read by us: the library takes NaN and text for numbers.
            return json.loads(self._client.post("/embeddings", body=body, cast_to=str, options={"headers": headers}))
        except openai.APITimeoutError as error:
            raise _AgainError(f"no answer within {settings.dense_seconds:g} s") from error
        except openai.APIConnectionError as error:
            raise _AgainError(f"no connection ({self._cleaned(str(error.__cause__ or error))})") from error
        except openai.APIStatusError as error:
            status, said = error.status_code, self._cleaned(str(error.message))
            if (status in (408, 409, 429) or status >= 500) and error.code != "insufficient_quota":
                raise _AgainError(f"status {status}, {said}", retry_after(error.response.headers)) from error
            self._refuse(
                labels,
                f"refuses with status {status}: {said}",
                f"check the URL, --dense-name and the key in the environment variable {settings.dense_key_variable}, "
                "where the model is asked, and the length that its texts may have",
            )
        except (ValueError, RecursionError) as error:
            raise _AgainError(f"no JSON ({self._cleaned(str(error))})") from error

    def _vectors(self, body: Any, labels: Sequence[str]) -> list[NDArray[np.float32]]:
        """The vectors of an answer, in the order of the texts; their sizes may differ yet.

        Without any `index` they are in this order already.

        Raises:
            InputError: it has another number of vectors, or one is no list of finite numbers.
        """
        remedy = "check that the URL is of an embeddings endpoint and that --dense-name is an embedding model"
        try:
            indexed = any("index" in item for item in body["data"])
            positions = [int(item["index"] if indexed else position) for position, item in enumerate(body["data"])]
            found = dict(zip(positions, [item["embedding"] for item in body["data"]], strict=True))
        except (KeyError, TypeError, ValueError, OverflowError):
            self._refuse(labels, f"returned no vectors but {self._cleaned(json.dumps(body))!r}", remedy)
        if sorted(positions) != list(range(len(labels))):
            what = f"returned {len(positions)} vectors (index {positions[:40]}) for {len(labels)} texts"
            self._refuse(labels, what, remedy)
        vectors = []
        for position, label in enumerate(labels):
            try:
                vector = _numbers(found[position])
            except ValueError:  # lists of different lengths, or text
                vector = np.empty(0)
            if vector.ndim != 1 or not vector.size or vector.dtype.kind not in "iuf":
                said = self._cleaned(json.dumps(found[position]))
                self._refuse([label], f"returned {said!r}, expected a list of numbers", remedy)
            with np.errstate(over="ignore"):
                vectors.append(vector.astype(np.float32))
            if not (finite := np.isfinite(vectors[-1])).all():
                number = int(np.argmin(finite))
                self._refuse(
                    [label], f"returned {vector[number]} as number {number} of its vector", "use another model"
                )
        return vectors

    def _refuse(self, labels: Sequence[str], what: str, remedy: str) -> NoReturn:
        of = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]} ({len(labels)} texts)"
        raise InputError(
            f"--dense-model {self.folder!r}, model {self._settings.dense_name!r}, {of}: the endpoint {what}; {remedy}, "
            "and run the same command again: finished blocks of an INDEX are not paid twice"
        )

    def _cleaned(self, text: str) -> str:
        return cleaned(text, self._key)


def _numbers(embedding: Any) -> NDArray[Any]:
    """The numbers of a vector; some servers send base64 of little-endian float32, whatever was asked for.

    Raises:
        ValueError: it is neither this nor a list of numbers.
    """
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.asarray(embedding)
