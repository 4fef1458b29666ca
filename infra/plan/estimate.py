"""The estimate: rows, bytes and hours, by the functions and settings that the system itself uses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clara.config.tree import Config
from clara.errors import InputError
from clara.memory.codec import CODECS, layout
from clara.memory.keys import DEFAULT_KEY_SIZE
from infra.plan import work
from infra.plan.index_cost import IndexKind, index_kind, list_seconds
from infra.plan.machines import Figure, Machine
from infra.plan.shape import Shape
from infra.plan.work import Lengths

_KEY_BYTES = 2  # of a number: keys are stored in float16


@dataclass(frozen=True)
class Request:
    """What is planned.

    Attributes:
        documents: of the corpus.
        tokens_per_document: mean.
        backbone: name or folder.
        gpus: that train, and that compress.
        refresh_gpus: that a refresh has for itself.
        price: of a GPU for an hour; 0: not known.
        question_tokens: of a question.
        answer_tokens: of an answer.
        prompt_tokens: around documents and question.
    """

    documents: int
    tokens_per_document: int
    backbone: str
    gpus: int
    refresh_gpus: int
    price: float
    question_tokens: int
    answer_tokens: int
    prompt_tokens: int = work.PROMPT_TOKENS


@dataclass(frozen=True)
class Rows:
    """Rows of MEMORY, and their mean length in tokens."""

    count: int
    tokens: float

    @classmethod
    def of(cls, documents: int, tokens: int, max_tokens: int, overlap: int) -> "Rows":
        """Chunks of equal documents; where sentences end makes a few more of them."""
        each = max(1, math.ceil((tokens - overlap) / (max_tokens - overlap)))
        return cls(documents * each, (tokens + (each - 1) * overlap) / each)


@dataclass(frozen=True)
class Estimate:
    """A run that is planned.

    Attributes:
        config: the root: M, chunks, codec, the joint stage.
        shape: of the backbone.
        request: what is planned.
        machine: one GPU or core of those that compute.
        constants: as returned by `infra.plan.machines.read_constants`.
    """

    config: Config
    shape: Shape
    request: Request
    machine: Machine
    constants: Mapping[str, Any]

    # --- sizes -------------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> Rows:
        """Rows of MEMORY.

        Raises:
            InputError: chunks would not advance.
        """
        job = self.config.corpus_job
        max_tokens = job.max_tokens or self.config.model.max_document_tokens
        if not 0 <= job.overlap_tokens <= max_tokens // 2:
            raise InputError(
                f"corpus_job.overlap_tokens is {job.overlap_tokens}, chunks have {max_tokens} tokens; "
                f"expected 0 to {max_tokens // 2}"
            )
        return Rows.of(self.request.documents, self.request.tokens_per_document, max_tokens, job.overlap_tokens)

    @property
    def lengths(self) -> Lengths:
        """Tokens of a row, a question and an answer."""
        request = self.request
        return Lengths(self.rows.tokens, request.question_tokens, request.answer_tokens, request.prompt_tokens)

    def row_bytes(self) -> dict[str, int]:
        """Bytes of one row's memory by codec."""
        slots, hidden = self.config.model.num_memory_tokens, self.shape.hidden_size
        return {
            name: sum(kind.itemsize * math.prod(size) for kind, size in layout(name, slots, hidden).values())
            for name in CODECS
        }

    def side_bytes(self) -> dict[str, float]:
        """Bytes of all rows that do not depend on the codec: keys, and the records' text (measured)."""
        text = self.constant("record_bytes_per_token").value * self.rows.tokens
        return {"keys": float(self.rows.count * self._stored_key * _KEY_BYTES), "records": self.rows.count * text}

    @property
    def _stored_key(self) -> int:
        widest = self.config.model.num_memory_tokens * self.shape.hidden_size
        return self.config.corpus_job.key_size or min(DEFAULT_KEY_SIZE, widest)

    @cached_property
    def index(self) -> IndexKind:
        """The kind of the INDEX: over the stored keys, or for a score of slot means over vectors of D numbers."""
        slot_mean = self.config.model.score.pooling == "slot_mean"
        return index_kind(self.rows.count, self.shape.hidden_size if slot_mean else self._stored_key, self.config)

    def words_bytes(self) -> float:
        """Bytes of the words part, which BM25 maps."""
        return self.constant("words_bytes_per_token").value * self.rows.count * self.rows.tokens

    # --- seconds -----------------------------------------------------------------------------------------------------

    def constant(self, name: str) -> Figure:
        """A measured figure of this kind of CPU."""
        found = self.constants["constants"][name]
        return Figure(found["value"], found["low"], found["high"], False, f"measured: {self.constants['processor']}")

    def compression_seconds(self, machines: int) -> Figure:
        """Seconds in which so many machines compress all rows."""
        operations = self.rows.count * work.compression(self.config, self.shape, self.lengths)
        return self.machine.compression.seconds(operations / machines)

    def rerank_seconds(self) -> Figure:
        """Seconds of a step that encoding its pools afresh adds."""
        questions = self.config.joint.questions_per_step / self.request.gpus
        return self.machine.compression.seconds(questions * work.reranking(self.config, self.shape, self.lengths))

    def step_seconds(self) -> Figure:
        """Seconds of one joint step: its passes, and the pools that are read from MEMORY and decoded."""
        joint = self.config.joint
        questions = joint.questions_per_step / self.request.gpus
        passes = self.machine.training.seconds(
            questions * work.joint_question(self.config, self.shape, self.lengths),
            self.machine.step_seconds * math.ceil(questions / joint.micro_batch),
        )
        numbers = questions * joint.num_candidates * self.config.model.num_memory_tokens * self.shape.hidden_size
        step = passes.plus(self.constant("read_numbers_per_second").seconds(numbers))
        return step.plus(self.rerank_seconds()) if joint.refresh.rerank else step

    def _key_seconds(self) -> Figure:
        return self.constant("index_seconds_per_row").times(self.rows.count).shifted(list_seconds(self.index))

    def index_seconds(self) -> Figure:
        """Seconds in which a CPU builds the INDEX, with its words if the configuration asks for them."""
        keys = self._key_seconds()
        if not self.config.index_job.words:
            return keys
        return keys.plus(self.constant("words_seconds_per_token").times(self.rows.count * self.rows.tokens))

    def refresh_seconds(self) -> Figure:
        """Seconds of a full refresh: all rows again, and an INDEX, whose words are those of the one before."""
        fixed = self.constant("refresh_fixed_seconds").value
        return self.compression_seconds(self.request.refresh_gpus).plus(self._key_seconds()).shifted(fixed)

    def joint_seconds(self) -> Figure:
        """Seconds of all joint steps."""
        return self.step_seconds().times(self.config.joint.steps)
