"""Greedy decoding of a batch that rows join and leave between steps.

Rows are padded on the left, so that the next token of each is at the same place. A row's tokens do not depend on the
other rows: in float32 they are those that it gets alone.

Shapes: B running rows, L positions, D hidden size, V vocabulary.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from clara.config.roles import GENERATOR
from clara.errors import InputError
from clara.model.lora import Route, routed
from clara.model.model import ClaraModel
from clara.model.precision import widened
from clara.model.prompts import Prompt

# Settings of generation_config.json that change greedy tokens and are not applied here.
_NOT_APPLIED = (
    *("sequence_bias", "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "guidance_scale"),
)


@dataclass(eq=False)
class Generation:
    """The answer to one prompt, while it grows.

    Attributes:
        prompt: without an answer.
        memory: `[k, M, D]` for its slots; `RunningBatch.join` reads and drops it.
        max_new_tokens: longest answer.
        tokens: so far, without the one that stops.
        done: whether no more will come.
        stopped: whether a stop token ended it, and not `max_new_tokens`.
    """

    prompt: Prompt
    memory: Tensor | None
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    stopped: bool = False

    def take(self, token: int, stops: set[int]) -> None:
        """Add the next token."""
        self.stopped = token in stops
        if not self.stopped:
            self.tokens.append(token)
        self.done = self.stopped or len(self.tokens) >= self.max_new_tokens


class RunningBatch:
    """Rows that are being answered, one token each a step.

    Attributes:
        rows: those that run, in the order of the batch.
    """

    def __init__(self, model: ClaraModel, role: str | None = GENERATOR) -> None:
        """An empty batch.

        Args:
            model: answers; it must not be training meanwhile.
            role: adapter that answers; None: the plain LM.

        Raises:
            InputError: the LM keeps a state that is not one entry a token, or its generation settings ask for more
                than is applied here.
        """
        lm = model.backbone.lm
        if not keeps_plain_cache(model):
            raise InputError(
                f"{model.backbone.folder}: this LM's layers keep a state beside keys and values, which rows that join "
                "and leave cannot share; answer with clara ask, or take another LM"
            )
        self.rows: list[Generation] = []
        self._model, self._lm, self._route = model, cast(Any, lm), Route(role)
        settings = lm.generation_config
        own = settings.eos_token_id
        self._stops = {*model.prompts.stop_ids, *(own if isinstance(own, list) else [] if own is None else [own])}
        self._processors = _processors(settings, model.backbone.folder)
        self._cache: DynamicCache | None = None
        self._mask_BL = torch.zeros(0, 0, dtype=torch.long, device=model.backbone.device)

    @torch.no_grad()
    def join(self, new: Sequence[Generation]) -> None:
        """Read the prompts of new rows, and give each its first token; those that are done then do not stay."""
        if not new:
            return
        memories = [row.memory for row in new if row.memory is not None]
        inputs_BLD, fronts = self._model.inputs([row.prompt for row in new], memories)
        for row in new:
            row.memory = None
        longest, device = max(fronts), inputs_BLD.device
        padded_BLD = torch.stack(
            [
                nn.functional.pad(own[:front], (0, 0, longest - front, 0))
                for own, front in zip(inputs_BLD, fronts, strict=True)
            ]
        )
        first_B = longest - torch.tensor(fronts, device=device)
        mask_BL = (torch.arange(longest, device=device) >= first_B[:, None]).long()
        cache = DynamicCache()
        self._take(new, self._logits(padded_BLD, mask_BL, cache))
        if self._cache is not None:
            cache, mask_BL = _joined(self._cache, self._mask_BL, cache, mask_BL)
        self.rows, self._cache, self._mask_BL = [*self.rows, *new], cache, mask_BL
        self._keep([not row.done for row in self.rows])

    @torch.no_grad()
    def step(self) -> None:
        """Give each row its next token; those that are done leave."""
        if self._cache is None:
            return
        last_B1 = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._mask_BL.device)
        self._mask_BL = nn.functional.pad(self._mask_BL, (0, 1), value=1)
        logits_BV = self._logits(self._model.backbone.embed(last_B1), self._mask_BL, self._cache)
        self._take(self.rows, logits_BV)
        self._keep([not row.done for row in self.rows])

    def leave(self, row: Generation) -> None:
        """Take a row out, done or not; one that is not in the batch is no error."""
        if row in self.rows:
            self._keep([other is not row for other in self.rows])

    def _logits(self, inputs_BLD: Tensor, mask_BL: Tensor, cache: DynamicCache) -> Tensor:
        """Logits `[B, V]` of the next token."""
        positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs_BLD.shape[1] :]
        with routed(self._route):
            logits_B1V = self._lm(
                inputs_embeds=inputs_BLD,
                attention_mask=mask_BL,
                position_ids=positions_BL,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return widened(logits_B1V[:, -1])

    def _take(self, rows: Sequence[Generation], logits_BV: Tensor) -> None:
        if self._processors:
            device, process = logits_BV.device, cast(Any, self._processors)
            ids = [torch.tensor([row.tokens], dtype=torch.long, device=device) for row in rows]
            logits_BV = torch.cat([process(i, own[None]) for i, own in zip(ids, logits_BV, strict=True)])
        for row, token in zip(rows, logits_BV.argmax(dim=-1).tolist(), strict=True):
            row.take(token, self._stops)

    def _keep(self, keep: Sequence[bool]) -> None:
        """Drop the other rows, and the padding that the longest of the rest does not need."""
        if all(keep) or self._cache is None:
            return
        self.rows = [row for row, kept in zip(self.rows, keep, strict=True) if kept]
        if not self.rows:
            self._cache, self._mask_BL = None, self._mask_BL[:0, :0]
            return
        kept_B = torch.tensor(keep, device=self._mask_BL.device).nonzero()[:, 0]
        mask_BL = self._mask_BL[kept_B]
        begin = int(mask_BL.argmax(dim=1).min())
        self._mask_BL = mask_BL[:, begin:]
        self._cache = DynamicCache([(k[kept_B, :, begin:], v[kept_B, :, begin:]) for k, v, _ in self._cache])


def generate(model: ClaraModel, rows: Iterable[Generation], most_at_once: int) -> list[Generation]:
    """Answer all rows, so many at once; the next ones are taken from the iterable as others leave."""
    if not keeps_plain_cache(model):
        return [_alone(model, row) for row in rows]
    batch, coming, taken = RunningBatch(model), iter(rows), list[Generation]()
    while True:
        new = list(itertools.islice(coming, most_at_once - len(batch.rows)))
        taken += new
        if not new and not batch.rows:
            return taken
        batch.step()
        batch.join(new)


def keeps_plain_cache(model: ClaraModel) -> bool:
    """Whether the LM keeps keys and values for each token, and no state that all tokens share (as Mamba's)."""
    layers = DynamicCache(config=model.backbone.lm.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def num_prompt_tokens(model: ClaraModel, row: Generation) -> int:
    """Positions of a row's prompt, its memory slots among them; before the row joins a batch."""
    num_documents = 0 if row.memory is None else len(row.memory)
    room = model.num_memory_tokens + int(model.settings.markers)
    return len(row.prompt.left) + num_documents * room + len(row.prompt.right)


def check_length(model: ClaraModel, num_prompt: int, num_answer: int) -> None:
    """Refuse a prompt and an answer of so many tokens, if the LM has no positions for both.

    Raises:
        InputError: prompt and answer together are longer than the LM's positions.
    """
    most = getattr(model.backbone.lm.config.get_text_config(), "max_position_embeddings", None)
    if most and num_prompt + num_answer > most:
        raise InputError(
            f"the prompt has {num_prompt} tokens and the answer up to {num_answer}, the language model takes {most} "
            "together; ask for fewer passages or tokens, or send less of the conversation"
        )


def answer_text(model: ClaraModel, tokens: Sequence[int]) -> str:
    """An answer's tokens as text, without special tokens and white space around it."""
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


class TextStream:
    """The text of an answer in pieces, which together are the whole text."""

    def __init__(self, model: ClaraModel, row: Generation) -> None:
        self._model, self._row, self._sent = model, row, ""

    def more(self) -> str:
        """What came since the last call.

        Held back until they are final: white space at the end, and a character of which some bytes are missing.
        """
        text = answer_text(self._model, self._row.tokens)
        if not self._row.done and (text.endswith("\ufffd") or not text.startswith(self._sent)):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece


def _alone(model: ClaraModel, row: Generation) -> Generation:
    memories = [] if row.memory is None else [row.memory]
    row.tokens = model.generate_ids([row.prompt], memories, max_new_tokens=row.max_new_tokens)[0]
    row.done, row.memory, row.stopped = True, None, len(row.tokens) < row.max_new_tokens
    return row


def _joined(
    one: DynamicCache, one_mask: Tensor, other: DynamicCache, other_mask: Tensor
) -> tuple[DynamicCache, Tensor]:
    """Two batches as one: keys, values and mask, the shorter padded on the left."""
    longest = max(one_mask.shape[1], other_mask.shape[1])

    def padded(states: Tensor) -> Tensor:
        return nn.functional.pad(states, (0, 0, longest - states.shape[2], 0))

    layers = [
        (torch.cat([padded(k), padded(other_k)]), torch.cat([padded(v), padded(other_v)]))
        for (k, v, _), (other_k, other_v, _) in zip(one, other, strict=True)
    ]
    masks = [nn.functional.pad(mask, (longest - mask.shape[1], 0)) for mask in (one_mask, other_mask)]
    return DynamicCache(layers), torch.cat(masks)


def _processors(settings: GenerationConfig, name: str) -> LogitsProcessorList:
    """What the LM's generation settings do to greedy logits: penalties of the answer's tokens so far."""
    found = LogitsProcessorList()
    asked = [key for key in _NOT_APPLIED if getattr(settings, key, None)]
    if asked:
        raise InputError(
            f"{name}: generation_config.json sets {', '.join(asked)}, which answering does not apply; "
            "remove it from that file"
        )
    if settings.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    return found
