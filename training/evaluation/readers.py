"""Readers: the generator reads the memory of rows, the plain LM their text. Batches have similar lengths.

Shapes: k rows of a prompt, M memory tokens, D hidden size.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clara.config.roles import GENERATOR
from clara.data.records import texts_of
from clara.memory.batches import plan_batches
from clara.model import lora
from clara.model.model import ClaraModel
from clara.model.prompts import Prompt
from clara.retrieval.retriever import Retriever
from clara.storage.folders import atomic_write
from clara.storage.manifest import hash_of, manifest_hash

# Enough to keep a few cores busy; more would only make progress jerky.
BATCH_TOKENS = 1024
Advance = Callable[[int], object]
"""Called with the number of tokens that were read."""


@dataclass(frozen=True)
class Reading:
    """A question to be answered from rows, best first."""

    question: str
    answer: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of an answer in nats, summed over its tokens (the stop token is one of them)."""

    nats: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats a token."""
        return self.nats / self.num_tokens


@dataclass
class ReadingCache:
    """What equal readers have computed: likelihoods by reading, answers by reading and longest length."""

    likelihoods: dict[Reading, Likelihood] = field(default_factory=dict)
    answers: dict[tuple[Reading, int], str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write everything to a file."""
        likelihoods = [[r.question, r.answer, r.rows, asdict(of)] for r, of in self.likelihoods.items()]
        answers = [[r.question, r.answer, r.rows, longest, text] for (r, longest), text in self.answers.items()]
        atomic_write(path, json.dumps({"likelihoods": likelihoods, "answers": answers}, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> "ReadingCache":
        """What `save` wrote; nothing where there is no file."""
        if not path.is_file():
            return cls()
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {
                Reading(question, answer, tuple(rows)): Likelihood(**of)
                for question, answer, rows, of in found["likelihoods"]
            },
            {
                (Reading(question, answer, tuple(rows)), longest): text
                for question, answer, rows, longest, text in found["answers"]
            },
        )


class Reader(ABC):
    """Answers from rows with one adapter of one model."""

    def __init__(self, retriever: Retriever, role: str | None, known: ReadingCache | None = None) -> None:
        """Read with the generator of a system.

        Args:
            retriever: the system.
            role: the adapter that reads; None is the plain LM.
            known: what equal readers have computed, and what gets that of this one.
        """
        self._retriever, self._role = retriever, role
        known = ReadingCache() if known is None else known
        self._likelihoods, self._answers = known.likelihoods, known.answers

    @property
    def model(self) -> ClaraModel:
        """The model that reads."""
        return self._retriever.model

    @abstractmethod
    def prompt(self, reading: Reading, answer: str | None) -> Prompt:
        """The prompt, with the answer or open."""

    @abstractmethod
    def memory(self, reading: Reading) -> Tensor:
        """The memory in the prompt's slots `[k, M, D]`."""

    def num_tokens(self, reading: Reading, prompt: Prompt) -> int:
        """Positions that the model computes for a prompt."""
        slots = self._num_slots(reading) * (self.model.num_memory_tokens + int(self.model.settings.markers))
        return len(prompt.left) + slots + len(prompt.right) + len(prompt.answer)

    @abstractmethod
    def _num_slots(self, reading: Reading) -> int: ...

    @torch.no_grad()
    def likelihoods(
        self, readings: Sequence[Reading], advance: Advance = lambda tokens: None
    ) -> dict[Reading, Likelihood]:
        """Log-likelihood of each reading's answer. An equal reading is computed once in this reader's life."""
        prompts = {r: self.prompt(r, r.answer) for r in dict.fromkeys(readings) if r not in self._likelihoods}
        for batch in self._batches(prompts):
            chosen = [prompts[r] for r in batch]
            memories = [self.memory(r) for r in batch]
            losses = self.model.answer_losses(chosen, memories, role=self._role, front_once=True)
            for reading, prompt, nll in zip(batch, chosen, losses.per_row().tolist(), strict=True):
                self._likelihoods[reading] = Likelihood(-nll, len(prompt.answer))
            advance(sum(self.num_tokens(r, prompts[r]) for r in batch))
        return {reading: self._likelihoods[reading] for reading in readings}

    def answers(
        self, readings: Sequence[Reading], max_new_tokens: int, advance: Advance = lambda tokens: None
    ) -> dict[Reading, str]:
        """Greedy answers. An equal reading is answered once in this reader's life."""
        prompts = {r: self.prompt(r, None) for r in dict.fromkeys(readings) if (r, max_new_tokens) not in self._answers}
        for batch in self._batches(prompts, max_new_tokens):
            chosen = [prompts[r] for r in batch]
            texts = self.model.generate_from(
                chosen, [self.memory(r) for r in batch], max_new_tokens=max_new_tokens, role=self._role
            )
            self._answers |= {(r, max_new_tokens): text for r, text in zip(batch, texts, strict=True)}
            advance(sum(self.num_tokens(r, prompts[r]) for r in batch))
        return {reading: self._answers[reading, max_new_tokens] for reading in readings}

    def likelihood_tokens(self, readings: Sequence[Reading]) -> int:
        """Tokens that `likelihoods` will read."""
        return sum(
            self.num_tokens(r, self.prompt(r, r.answer)) for r in dict.fromkeys(readings) if r not in self._likelihoods
        )

    def answer_tokens(self, readings: Sequence[Reading], max_new_tokens: int) -> int:
        """Tokens that `answers` will read, without those that it writes."""
        new = [r for r in dict.fromkeys(readings) if (r, max_new_tokens) not in self._answers]
        return sum(self.num_tokens(r, self.prompt(r, None)) for r in new)

    def _batches(self, prompts: dict[Reading, Prompt], extra_tokens: int = 0) -> list[list[Reading]]:
        lengths = {reading: self.num_tokens(reading, prompt) for reading, prompt in prompts.items()}
        order = sorted(lengths, key=lengths.__getitem__)
        return [
            [order[i] for i in batch] for batch in plan_batches([lengths[r] for r in order], BATCH_TOKENS, extra_tokens)
        ]


class MemoryReader(Reader):
    """The generator on memory."""

    def __init__(self, retriever: Retriever, known: ReadingCache | None = None) -> None:
        super().__init__(retriever, GENERATOR, known)

    @staticmethod
    def identity(retriever: Retriever) -> str:
        """What answers depend on beside the passages: systems with one generator over one MEMORY share it."""
        model, digest = retriever.model, hashlib.sha256()
        for parameter in (*lora.parameters(model.backbone.layers, GENERATOR), *model.slots.parameters()):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        reads = ["text"] if retriever.reads_text else []
        known = [TextReader.identity(retriever), digest.hexdigest(), manifest_hash(retriever.store.directory)]
        return hash_of([*known, *reads])

    def prompt(self, reading: Reading, answer: str | None) -> Prompt:
        """See the base class."""
        return self.model.prompts.question(reading.question, answer)

    def memory(self, reading: Reading) -> Tensor:
        """See the base class."""
        return self._retriever.memories(reading.rows)

    def _num_slots(self, reading: Reading) -> int:
        return len(reading.rows)


class TextReader(Reader):
    """The plain LM on raw passages, or a generator that was trained to read them: standard RAG."""

    def __init__(self, retriever: Retriever, known: ReadingCache | None = None, *, role: str | None = None) -> None:
        super().__init__(retriever, role, known)

    @staticmethod
    def identity(retriever: Retriever) -> str:
        """What likelihoods depend on beside the passages: all systems over one LM share it."""
        fields = retriever.store.fingerprint_fields
        return hash_of(
            [fields.backbone, fields.tokenizer, fields.dtype, retriever.model.prompts.prompts.model_dump(mode="json")]
        )

    def prompt(self, reading: Reading, answer: str | None) -> Prompt:
        """See the base class."""
        passages = texts_of(self._retriever.store.records(reading.rows))
        return self.model.prompts.question(reading.question, answer, passages)

    def memory(self, reading: Reading) -> Tensor:
        """See the base class."""
        return torch.zeros(0, self.model.num_memory_tokens, self.model.hidden_size)

    def _num_slots(self, reading: Reading) -> int:
        return 0
