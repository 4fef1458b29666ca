"""The model: one causal LM, memory tokens, and three adapters that compress, query and answer.

Shapes: B rows, K selected, M memory tokens, D hidden size, L positions, T answer tokens of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from clara.config.model import Model as ModelSettings
from clara.config.model import Prompts
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER, ROLES
from clara.model import lora
from clara.model.backbone import Backbone
from clara.model.geometry import QuestionMean
from clara.model.lora import Route
from clara.model.losses import AnswerLosses
from clara.model.precision import widened
from clara.model.prompts import Prompt, PromptBuilder
from clara.model.shared_front import num_shared_tokens
from clara.model.slots import MemorySlots, segment_shares


@dataclass(frozen=True)
class Encoded:
    """A compressing pass: memory `[B, M, D]` in float32, and mean states of memory and text `[B, D]` for the MSE."""

    memory: Tensor
    memory_mean: Tensor
    text_mean: Tensor


class ClaraModel(nn.Module):
    """Compressor, query reasoner and generator on one backbone."""

    def __init__(
        self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, prompts: Prompts
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.slots = MemorySlots(settings.num_memory_tokens, backbone.embedding.weight)
        self.tokenizer = tokenizer
        self.prompts = PromptBuilder(tokenizer, prompts)
        self.settings = settings
        self.question_mean = QuestionMean(settings.score, settings.num_memory_tokens, backbone.hidden_size)

    @property
    def num_memory_tokens(self) -> int:
        """Number of memory tokens M."""
        return self.settings.num_memory_tokens

    @property
    def hidden_size(self) -> int:
        """Hidden size D."""
        return self.backbone.hidden_size

    def role_parameters(self, role: str) -> list[nn.Parameter]:
        """The parameters of one role's adapter, or of `memory_tokens`, `question_mean` or `backbone`."""
        modules = {"memory_tokens": self.slots, "question_mean": self.question_mean}
        if role in modules:
            return list(modules[role].parameters())
        if role == "backbone":
            adapters = {id(p) for r in ROLES for p in lora.parameters(self.backbone.layers, r)}
            return [p for p in self.backbone.lm.parameters() if id(p) not in adapters]
        return lora.parameters(self.backbone.layers, role)

    def train_only(self, roles: Sequence[str]) -> list[nn.Parameter]:
        """Freeze everything but these roles, and return what trains."""
        self.requires_grad_(False)
        chosen = [p for role in roles for p in self.role_parameters(role)]
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def document_ids(self, text: str) -> list[int]:
        """Tokens of a text to compress, uncut; special tokens in it are broken up, so that none can be injected."""
        return self.prompts.text_ids(text)

    def question_ids(self, question: str) -> list[int]:
        """Tokens of a question, cut to `max_question_tokens` of its beginning or its end (`question_keeps`)."""
        ids, limit = self.prompts.text_ids(question), self.settings.max_question_tokens
        return ids[:limit] if self.settings.question_keeps == "beginning" else ids[-limit:]

    def input_ids(self, text: Sequence[int]) -> list[int]:
        """What the LM reads of a text to compress, between the marker and the memory tokens: bos, its tokens, eos."""
        ends = [
            [] if token is None else [token] for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        ]
        ids = [*ends[0], *text, *ends[1]]
        # The reference cuts marker, bos, text and eos to max_document_tokens + 3 tokens together.
        return (
            ids[: self.settings.max_document_tokens + 3 - int(self.settings.markers)]
            if self.settings.cut_inputs
            else ids
        )

    def encode(self, texts: Sequence[Sequence[int]], role: str, *, dropout: bool = False) -> Encoded:
        """Compress token lists.

        The input is marker, bos, text, eos, then the memory tokens, whose last hidden states are the memory.

        Rows are padded on the right to the longest; each is encoded as if it were alone.

        Args:
            texts: token ids without special ones; each at least one token.
            role: the adapter: `compressor` or `query_reasoner`.
            dropout: the adapter's dropout, for a part that is being trained.
        """
        device, num_memory = self.backbone.device, self.num_memory_tokens
        memory_tokens_MD, markers, gate_M = self.slots()
        num_front = int(self.tokenizer.bos_token_id is not None)
        start = int(self.settings.markers) + num_front
        wrapped = [self.input_ids(text) for text in texts]
        num_text = [min(len(text), len(ids) - num_front) for text, ids in zip(texts, wrapped, strict=True)]
        lengths = [int(self.settings.markers) + len(ids) for ids in wrapped]
        longest = max(lengths) + num_memory
        ids_BL = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, ids in enumerate(wrapped):
            ids_BL[row, int(self.settings.markers) : lengths[row]] = torch.tensor(ids)
        embedded_BLD = self.backbone.embed(ids_BL.to(device))
        rows = torch.arange(len(texts), device=device)[:, None]
        places_BM = torch.tensor(lengths, device=device)[:, None] + torch.arange(num_memory, device=device)
        written = memory_tokens_MD.to(embedded_BLD.dtype).expand(len(texts), -1, -1)
        inputs_BLD = embedded_BLD.index_put((rows.expand_as(places_BM), places_BM), written)
        if self.settings.markers:
            first = torch.zeros_like(rows[:, 0])
            inputs_BLD = inputs_BLD.index_put(
                (rows[:, 0], first), markers[0].to(inputs_BLD.dtype).expand(len(texts), -1)
            )
        hidden_BLD = self.backbone.trunk(inputs_BLD, Route(role, dropout))
        states_BMD = widened(hidden_BLD[rows, places_BM])
        position = torch.arange(longest, device=device)
        text_BL = (position < torch.tensor(lengths, device=device)[:, None]).to(hidden_BLD.dtype)
        text_mean = widened(torch.einsum("bl,bld->bd", text_BL, hidden_BLD)) / widened(text_BL.sum(dim=1, keepdim=True))
        residual = self.settings.residual if role == COMPRESSOR else self.settings.query_residual
        memory = states_BMD
        if self.settings.residual != "none":
            normalised = states_BMD * torch.rsqrt(states_BMD.square().mean(dim=-1, keepdim=True) + 1e-6)
            memory = widened(gate_M)[:, None] * normalised
            if residual != "none":
                share_BML = segment_shares(
                    num_text, start, num_memory if residual == "segment_mean" else 1, longest
                ).to(device, embedded_BLD.dtype)
                memory = memory + widened(torch.einsum("bml,bld->bmd", share_BML, embedded_BLD))
        return Encoded(memory, states_BMD.mean(dim=1), text_mean)

    @torch.no_grad()
    def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Memory `[B, M, D]` of token lists as returned by `document_ids`, float32, without gradient or dropout."""
        return self.encode(texts, COMPRESSOR).memory

    def query(self, questions: Sequence[Sequence[int]], *, dropout: bool = False) -> Tensor:
        """Query vectors `[B, M, D]` of token lists; without the questions' mean if the score is centred."""
        query_BMD: Tensor = self.question_mean(self.encode(questions, QUERY_REASONER, dropout=dropout).memory)
        return query_BMD

    @torch.no_grad()
    def encode_questions(self, questions: Sequence[str]) -> Tensor:
        """Query vectors `[B, M, D]` as `query` gives them, float32, without gradient or dropout."""
        return self.query([self.question_ids(q) for q in questions])

    def inputs(self, prompts: Sequence[Prompt], memories: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Input embeddings `[B, L, D]` of prompts with their answers, and the number of tokens in front of each answer.

        Args:
            prompts: see `PromptBuilder`.
            memories: a `[k, M, D]` for each prompt, best first; k may be 0.
        """
        device, num_memory = self.backbone.device, self.num_memory_tokens
        memory_tokens_MD, markers, _ = self.slots()
        room = num_memory + int(self.settings.markers)
        stride = num_memory if self.settings.overlapping_slots else room
        rows: list[int] = []
        positions: list[int] = []
        ids, fronts, marker_rows, marker_places = [], [], [], []
        unwritten: list[tuple[int, int, int]] = []
        for row, (prompt, memory) in enumerate(zip(prompts, memories, strict=True)):
            for document in range(memory.shape[0]):
                begin = len(prompt.left) + document * stride
                rows += [row] * num_memory
                positions += range(begin, begin + num_memory)
                if self.settings.markers and stride == room:
                    marker_rows.append(row)
                    marker_places.append(begin + num_memory)
            slots_end = len(prompt.left) + memory.shape[0] * room
            if stride < room:
                # What the memories leave over of the prompt's own slots, each of the memory tokens and a marker.
                for position in range(len(prompt.left) + memory.shape[0] * stride, slots_end):
                    unwritten.append((row, position, (position - len(prompt.left)) % room))
            ids.append([*prompt.left, *[0] * (memory.shape[0] * room), *prompt.right, *prompt.answer[:-1]])
            fronts.append(slots_end + len(prompt.right))
        longest = max(map(len, ids))
        ids_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=device)
        inputs_BLD = self.backbone.embed(ids_BL)
        if rows:
            vectors = torch.cat([m.flatten(0, 1) for m in memories]).to(device, inputs_BLD.dtype)
            inputs_BLD = inputs_BLD.index_put(
                (torch.tensor(rows, device=device), torch.tensor(positions, device=device)), vectors
            )
        if marker_rows:
            where = (torch.tensor(marker_rows, device=device), torch.tensor(marker_places, device=device))
            inputs_BLD = inputs_BLD.index_put(where, markers[1].to(inputs_BLD.dtype).expand(len(marker_rows), -1))
        if unwritten:
            left_rows, left_places, which = torch.tensor(unwritten, device=device).unbind(dim=1)
            inputs_BLD = inputs_BLD.index_put(
                (left_rows, left_places), torch.cat([memory_tokens_MD, markers[1:]])[which].to(inputs_BLD.dtype)
            )
        return inputs_BLD, fronts

    def answer_losses(
        self,
        prompts: Sequence[Prompt],
        memories: Sequence[Tensor],
        *,
        role: str | None = GENERATOR,
        dropout: bool = False,
        front_once: bool = False,
    ) -> AnswerLosses:
        """Negative log-likelihood of every answer token; logits are computed at the answers' positions only.

        Args:
            prompts: with answers.
            memories: a `[k, M, D]` for each prompt.
            role: None reads with the plain LM.
            dropout: the generator's dropout, where it is being trained.
            front_once: tokens that all prompts begin with pass the LM once, not once for each: faster, and equal up to
                rounding. No gradient; not for a model whose parameters are shared out among ranks.
        """
        inputs_BLD, fronts = self.inputs(prompts, memories)
        if shared := num_shared_tokens(prompts, [len(m) for m in memories]) if front_once else 0:
            front_1FD, inputs_BLD = inputs_BLD[:1, :shared], inputs_BLD[:, shared:]
            hidden_BLD = self.backbone.trunk_after(front_1FD, inputs_BLD, Route(role))
            fronts = [front - shared for front in fronts]
        else:
            hidden_BLD = self.backbone.trunk(inputs_BLD, Route(role, dropout))
        device = hidden_BLD.device
        row = torch.tensor([r for r, p in enumerate(prompts) for _ in p.answer], device=device)
        position = torch.tensor(
            [f - 1 + i for f, p in zip(fronts, prompts, strict=True) for i in range(len(p.answer))], device=device
        )
        target = torch.tensor([t for p in prompts for t in p.answer], device=device)
        nll = nn.functional.cross_entropy(self.backbone.logits(hidden_BLD[row, position]), target, reduction="none")
        weight = torch.tensor([w for p in prompts for w in p.weights], device=device)
        return AnswerLosses(nll, weight, row, len(prompts))

    @torch.no_grad()
    def answer_log_likelihood(
        self, questions: Sequence[str], memories: Sequence[Tensor], answers: Sequence[str], *, front_once: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood (sum over tokens, nats) and number of tokens of each answer given its memories, each `[B]`.

        `front_once`: see `answer_losses`.
        """
        prompts = [self.prompts.question(q, a) for q, a in zip(questions, answers, strict=True)]
        losses = self.answer_losses(prompts, memories, front_once=front_once)
        return -losses.per_row(), torch.tensor([len(p.answer) for p in prompts])

    @torch.no_grad()
    def generate(
        self, questions: Sequence[str], memories: Sequence[Tensor], *, max_new_tokens: int = 32, together: bool = False
    ) -> list[str]:
        """Greedy answers; `together`: see `Backbone.generate`."""
        prompts = [self.prompts.question(q) for q in questions]
        return self.generate_from(prompts, memories, max_new_tokens=max_new_tokens, together=together)

    @torch.no_grad()
    def generate_from(
        self,
        prompts: Sequence[Prompt],
        memories: Sequence[Tensor],
        *,
        max_new_tokens: int,
        role: str | None = GENERATOR,
        together: bool = False,
    ) -> list[str]:
        """Greedy continuations of prompts without answers, as text."""
        generated = self.generate_ids(prompts, memories, max_new_tokens=max_new_tokens, role=role, together=together)
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in generated]

    @torch.no_grad()
    def generate_ids(
        self,
        prompts: Sequence[Prompt],
        memories: Sequence[Tensor],
        *,
        max_new_tokens: int,
        role: str | None = GENERATOR,
        together: bool = False,
    ) -> list[list[int]]:
        """The same as token ids, without the one that stops."""
        inputs_BLD, fronts = self.inputs(prompts, memories)
        rows = [inputs_BLD[row, :front] for row, front in enumerate(fronts)]
        return self.backbone.generate(
            rows, Route(role), max_new_tokens=max_new_tokens, stop_ids=self.prompts.stop_ids, together=together
        )
