"""One micro-step of each stage as a plain torch module: it takes a batch and returns the loss and figures to log.

A micro-step is what one rank computes at once; launchers add the optimiser and the other ranks. Token losses are
divided by the caller's `normaliser`, the answer tokens of the whole step over all ranks and micro-steps, and losses of
documents or questions by their number in the step. So the step's gradient does not depend on how the batch is cut.

P is arXiv:2511.18659. Unread rows are rows of MEMORY outside a question's pool: no generator reads them, but they can
be in the denominator of the retrieval losses.

Shapes: B questions, N candidates, K selected, S unread rows, M memory tokens, D hidden size, F numbers of a vector.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clara.config.roles import COMPRESSOR, GENERATOR
from clara.config.stages import Instruct, Joint, Pretrain
from clara.model.fusion import fused
from clara.model.geometry import cosine, represent
from clara.model.joint_batch import AnswerBatch, JointBatch
from clara.model.losses import AnswerLosses, info_nce, state_mse, utility_divergence
from clara.model.model import ClaraModel
from clara.model.prompts import Prompt
from clara.model.topk import straight_through_topk


@dataclass(frozen=True)
class Output:
    """The loss, and figures to log, each as a sum and the count to divide it by."""

    loss: Tensor
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PretrainBatch(AnswerBatch):
    """Texts to compress (token ids), and what the generator reproduces from each memory."""

    documents: list[list[int]]
    prompts: list[Prompt]


class PretrainStep(nn.Module):
    """SCP (P §2.1): cross-entropy of targets given the memory, plus λ times the squared difference of mean states."""

    def __init__(self, model: ClaraModel, settings: Pretrain) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: PretrainBatch, normaliser: float, num_rows: float) -> Output:
        """Σ w·nll / normaliser + λ · Σ mse / num_rows.

        Args:
            batch: the micro-batch.
            normaliser: answer-token weight of the whole step.
            num_rows: its documents.
        """
        encoded = self.model.encode(batch.documents, COMPRESSOR, dropout=True)
        losses = self.model.answer_losses(batch.prompts, [m[None] for m in encoded.memory], dropout=True)
        reproduced = (losses.nll * losses.weight).sum()
        mse = state_mse(encoded.memory_mean, encoded.text_mean) * len(batch.documents)
        loss = reproduced / normaliser + self.settings.mse_weight * mse / num_rows
        return Output(loss, _answer_figures(losses) | {"mse": (float(mse.detach()), len(batch.documents))})


@dataclass(frozen=True)
class InstructBatch(AnswerBatch):
    """Questions with answers, the documents of the batch (token ids), and the K of them that each prompt holds."""

    prompts: list[Prompt]
    documents: list[list[int]]
    selected: list[list[int]]


class InstructStep(nn.Module):
    """Answers from the memories of K documents (P §2.2)."""

    def __init__(self, model: ClaraModel, settings: Instruct) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: InstructBatch, normaliser: float, num_rows: float) -> Output:
        """Σ nll / normaliser, plus λ · Σ mse / num_rows if the compressor trains.

        Args:
            batch: the micro-batch.
            normaliser: answer tokens of the whole step.
            num_rows: its documents.
        """
        training = self.settings.train_compressor
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            encoded = self.model.encode(batch.documents, COMPRESSOR, dropout=training)
        losses = self.model.answer_losses(batch.prompts, [encoded.memory[s] for s in batch.selected], dropout=True)
        loss = losses.nll.sum() / normaliser
        mse = state_mse(encoded.memory_mean, encoded.text_mean) * len(batch.documents)
        if training:
            loss = loss + self.settings.mse_weight * mse / num_rows
        return Output(loss, _answer_figures(losses) | {"mse": (float(mse.detach()), len(batch.documents))})


class JointStep(nn.Module):
    """Retrieval and generation by one loss (P §3).

    L = w_a · Σ nll / normaliser + w_l · Σ InfoNCE / num_rows + w_u · Σ KL / num_rows, with the weights
    `answer_weight`, `labels_weight` and `utility_weight`. The published loss is the first term alone. Its gradient
    reaches the scores through the straight-through top-k, and from them the query reasoner.
    """

    def __init__(self, model: ClaraModel, settings: Joint) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: JointBatch, normaliser: float, num_rows: float) -> Output:
        """Loss of a micro-batch.

        Args:
            batch: the micro-batch.
            normaliser: answer tokens of the whole step.
            num_rows: its questions.
        """
        settings = self.settings
        query_BMD = self.model.query(batch.questions, dropout=settings.train_query_reasoner)
        cosine_BN = cosine(query_BMD, batch.memory, self.model.settings.score, batch.corpus_mean)
        scores_BN = fused(cosine_BN, batch.features, self.model.settings.fusion)  # τ·z: logits are these divided by τ
        # The control: the same selection, but the answer does not train the scores.
        for_answer_BN = scores_BN.detach() if settings.cut_gradient else scores_BN
        weights_BKN, indices_BK = straight_through_topk(
            for_answer_BN, settings.num_selected, settings.temperature, batch.valid, mask_epsilon=settings.mask_epsilon
        )
        figures = _retrieval(scores_BN, indices_BK, batch)
        unread_B = self.unread(query_BMD, batch)
        # Zero, but with the graph of the scores: backward makes the same collective calls on every rank, also on one
        # whose batch has no term with a gradient.
        loss = scores_BN.sum() * 0.0
        if settings.answer_weight:
            losses = self.answer(batch, weights_BKN, indices_BK)
            loss = loss + settings.answer_weight * losses.nll.sum() / normaliser
            figures |= _answer_figures(losses)
        if settings.labels_weight:
            labels = info_nce(scores_BN, batch.positive, settings.temperature, batch.valid, unread_B)
            # A mean over the questions with a known positive, times their number: the others count as zero.
            num_labelled = figures["pool_has_positive"][0]
            loss = loss + settings.labels_weight * labels * num_labelled / num_rows
            figures["labels_loss"] = (float(labels.detach()) * num_labelled, num_labelled)
        if settings.utility_weight:
            divergence, num_questions = self.divergence(for_answer_BN, unread_B, batch), len(batch.questions)
            loss = loss + settings.utility_weight * divergence * (num_questions / num_rows)
            figures["utility_loss"] = (float(divergence.detach()) * num_questions, num_questions)
        return Output(loss, figures)

    def answer(self, batch: JointBatch, weights_BKN: Tensor, indices_BK: Tensor) -> AnswerLosses:
        """Losses of the answer tokens, given the memories or the texts of the K selected candidates."""
        if self.settings.reads == "text":
            prompts = self.text_prompts(batch, indices_BK)
            memories = [batch.memory[0, :0]] * len(prompts)
        else:
            prompts, memories = batch.prompts, self.selected_memories(batch, weights_BKN, indices_BK)
        return self.model.answer_losses(prompts, memories, dropout=self.settings.train_generator)

    def unread(self, query_BMD: Tensor, batch: JointBatch) -> Tensor | None:
        """Log of the weighted sum of exp(z) over the unread rows `[B]`; None if the denominator is the pool alone."""
        if batch.unread is None:
            return None
        query_BF = represent(query_BMD, self.model.settings.score)
        scores_BS = fused(query_BF @ batch.unread.unit.T, batch.unread.features, self.model.settings.fusion)
        return (scores_BS / self.settings.temperature + batch.unread.log_weight).logsumexp(dim=1)

    def divergence(self, scores_BN: Tensor, unread_B: Tensor | None, batch: JointBatch) -> Tensor:
        """KL from the target of the utilities to the softmax of the scores, averaged over the batch's questions."""
        settings = self.settings
        nats_BN, without_B = batch.utilities, batch.without
        if nats_BN is None:
            nats_BN, without_B = self.utilities(batch)
        if unread_B is not None and settings.cut_gradient:
            unread_B = unread_B.detach()
        return utility_divergence(
            scores_BN,
            nats_BN,
            settings.temperature,
            settings.utility_temperature,
            batch.valid,
            without_B=without_B if settings.utility_target == "mass" else None,
            unread_B=unread_B,
        )

    def text_prompts(self, batch: JointBatch, indices_BK: Tensor) -> list[Prompt]:
        """Prompts that hold the texts of the K selected candidates, best first."""
        chosen = [row[:count] for row, count in zip(indices_BK.tolist(), self._num_selected(batch), strict=True)]
        return [
            self.model.prompts.question(pool.question, pool.answer, [pool.passages[n] for n in selected])
            for pool, selected in zip(batch.texts, chosen, strict=True)
        ]

    def selected_memories(self, batch: JointBatch, weights_BKN: Tensor, indices_BK: Tensor) -> list[Tensor]:
        """The K memories `[K, M, D]` of each question, best first.

        Forward: the stored rows, or, if the compressor trains, the same documents encoded afresh. Gradient: to the
        scores through the stored memory of all candidates, and to the compressor through the fresh encodings alone.
        With `right_memory` a known positive takes the last place, without a gradient to the scores.
        """
        counts = self._num_selected(batch)
        memory_BNMD = batch.memory.to(weights_BKN.dtype)
        selected_BKMD = torch.einsum("bkn,bnmd->bkmd", weights_BKN, memory_BNMD)
        if self.settings.train_compressor and not batch.compressor_frozen:
            if len(batch.candidates) != len(batch.questions):
                raise ValueError(
                    "a joint step that trains the compressor needs the token ids of every question's candidates"
                )
            chosen = [
                batch.candidates[row][n] for row, count in enumerate(counts) for n in indices_BK[row, :count].tolist()
            ]
            # A batch without any candidate still makes the pass, on an empty text: every rank must make the same
            # collective calls.
            fresh = list(
                self.model.encode(chosen or [[]], COMPRESSOR, dropout=True).memory[: len(chosen)].split(counts)
            )
            through = selected_BKMD - selected_BKMD.detach()
            memories = [fresh[row] + through[row, :count] for row, count in enumerate(counts)]
        else:
            memories = [selected_BKMD[row, :count] for row, count in enumerate(counts)]
        for row, right in enumerate(batch.right_memory):
            if right is not None:
                memories[row] = torch.cat(
                    [memories[row][: self.settings.num_selected - 1], right[None].to(memories[row].dtype)]
                )
        return memories

    def _num_selected(self, batch: JointBatch) -> list[int]:
        """How many each question selects: K, or all of a smaller pool, whose padding is no document."""
        counts: list[int] = batch.valid.sum(dim=1).clamp(max=self.settings.num_selected).tolist()
        return counts

    @torch.no_grad()
    def utilities(self, batch: JointBatch) -> tuple[Tensor, Tensor | None]:
        """Log-likelihood of the answer given each candidate alone `[B, N]`, and given no document `[B]`; no dropout.

        The latter is None unless the target needs it (`joint.utility_target`).
        """
        needs_without, rows = self.settings.utility_target == "mass", []
        for prompt, memory_NMD in zip(batch.prompts, batch.memory, strict=True):
            given = [*(m[None] for m in memory_NMD), *([memory_NMD[:0]] if needs_without else [])]
            rows.append(-self.model.answer_losses([prompt] * len(given), given, role=GENERATOR).per_row())
        nats_BN = torch.stack(rows)
        return (nats_BN[:, :-1], nats_BN[:, -1]) if needs_without else (nats_BN, None)


def _answer_figures(losses: AnswerLosses) -> dict[str, tuple[float, float]]:
    """Answer loss in nats per token, over the tokens at full weight."""
    full = losses.weight >= 1.0
    return {"answer_nats": (float(losses.nll.detach()[full].sum()), float(full.sum()))}


def _retrieval(scores_BN: Tensor, indices_BK: Tensor, batch: JointBatch) -> dict[str, tuple[float, float]]:
    """Pools with a positive, how often one is selected or first, and the best score's lead over the pool's mean."""
    has_B = (batch.positive & batch.valid).any(dim=1)
    selected_BK = batch.positive.gather(1, indices_BK) & has_B[:, None]
    count = float(has_B.sum())
    scores_BN, size_B = scores_BN.detach().masked_fill(~batch.valid, 0.0), batch.valid.sum(dim=1)
    best_B = scores_BN.masked_fill(~batch.valid, -torch.inf).max(dim=1).values
    spread_B = (best_B - scores_BN.sum(dim=1) / size_B)[size_B > 0]
    return {
        "pool_has_positive": (count, len(has_B)),
        "positive_selected": (float(selected_BK.any(dim=1).sum()), count),
        "positive_first": (float(selected_BK[:, 0].sum()), count),
        "score_spread": (float(spread_B.sum()), len(spread_B)),
    }
