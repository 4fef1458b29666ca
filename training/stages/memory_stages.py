"""Stages `pretrain` and `instruct` for the loop: which parameters train, and each step's batches."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from clara.config.roles import COMPRESSOR, GENERATOR
from clara.config.stages import Instruct
from clara.config.tree import Config
from clara.data.examples import Example
from clara.data.questions import Question
from clara.errors import InputError
from clara.model.backbone_files import weights_hash
from clara.model.model import ClaraModel
from clara.model.prompts import Prompt
from clara.model.steps import InstructBatch, InstructStep, PretrainBatch, PretrainStep
from training.loop.engine import Engine
from training.loop.loop import Stage, sample
from training.loop.shares import shard


def cut(prompt: Prompt, max_answer_tokens: int) -> Prompt:
    """The prompt with its answer cut to a length. A cut answer has no stop token, as it does not end there."""
    return Prompt(prompt.left, prompt.right, prompt.answer[:max_answer_tokens], prompt.weights[:max_answer_tokens])


class MemoryStage(Stage):
    """Base of both stages: one learning rate, a count of cut texts, and run states that fit one backbone only."""

    _model: ClaraModel
    _parameters: list[nn.Parameter]
    _num_cut = 0

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """See the base class."""
        return [(self.optimiser.learning_rate, self._parameters)]

    def after_step(self, step: int, engine: Engine) -> dict[str, float]:
        """`texts_cut`: how many texts of this rank's step were longer than the limits."""
        return {"texts_cut": float(self._num_cut)}

    def state(self) -> dict[str, Any]:
        """The hash of the backbone: adapters fit no other one."""
        return {"backbone": weights_hash(self._model.backbone.folder)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Refuse the run state of another backbone.

        Raises:
            InputError: the hashes differ.
        """
        own = weights_hash(self._model.backbone.folder)
        if state.get("backbone", own) != own:
            raise InputError(
                f"the run state to resume is for a backbone with sha256 {state['backbone'][:16]}…, "
                f"{self._model.backbone.folder} has {own[:16]}…; "
                "give the backbone that the run began with, or another output"
            )


class PretrainStage(MemoryStage):
    """Compressor and generator learn to reproduce documents from memory; memory tokens and backbone are optional."""

    def __init__(self, model: ClaraModel, examples: list[Example], config: Config, micro_batch: int) -> None:
        settings = config.pretrain
        self.name, self.steps, self.optimiser = "pretrain", settings.steps, settings.optimiser
        self.module: nn.Module = PretrainStep(model, settings)
        self.roles = [
            COMPRESSOR,
            GENERATOR,
            *["memory_tokens"] * settings.train_memory_tokens,
            *["backbone"] * settings.train_backbone,
        ]
        self._parameters = model.train_only(self.roles)
        self._model, self._examples, self._config, self._micro_batch = model, examples, config, micro_batch

    def rows(self, step: int) -> int:
        """See the base class."""
        return self._config.pretrain.documents_per_step

    def micro_batches(self, step: int, rank: int, world: int) -> list[PretrainBatch]:
        """See the base class."""
        self._num_cut = 0
        rows = sample(self._config.seed, step, self.rows(step), len(self._examples))
        return [self._batch(step, part) for part in shard(rows, rank, world, self._micro_batch)]

    def _batch(self, step: int, rows: list[int]) -> PretrainBatch:
        documents, prompts = [], []
        settings = self._config.pretrain
        for row in rows:
            example = self._examples[row]
            ids = self._model.document_ids(example.document)
            limit = self._model.settings.max_document_tokens
            prompt = self._prompt(example, step)
            self._num_cut += len(ids) > limit or len(prompt.answer) > settings.max_answer_tokens
            documents.append(ids[:limit])
            prompts.append(cut(prompt, settings.max_answer_tokens))
        return PretrainBatch(documents, prompts)

    def _prompt(self, example: Example, step: int) -> Prompt:
        builder = self._model.prompts
        if example.kind in ("qa", "cloze"):
            return builder.pairs(example.questions, example.answers, self._config.pretrain.question_weight)
        return builder.paraphrase(example.answers[0] if example.answers else example.document, step)


def right_documents(question: Question, settings: Instruct) -> tuple[str, ...]:
    """Ids of a question's right documents that its prompt holds: K at most."""
    return question.positive_ids[: 1 if settings.positives == "first" else settings.num_documents]


def offered_documents(question: Question, settings: Instruct) -> tuple[str, ...]:
    """Ids of all documents that a question's prompt may hold: right ones, and with `negatives = "pool"` its pool."""
    return right_documents(question, settings) + (question.candidate_ids if settings.negatives == "pool" else ())


class InstructStage(MemoryStage):
    """The generator answers from K memories: right documents, and others of the micro-batch or the pool, shuffled."""

    def __init__(
        self, model: ClaraModel, questions: list[Question], documents: dict[str, str], config: Config, micro_batch: int
    ) -> None:
        settings = config.instruct
        if not questions:
            raise InputError(
                "questions: none of split 'train' names a positive document; stage instruct needs to know which "
                "document answers"
            )
        if micro_batch < settings.num_documents:
            raise InputError(
                f"instruct.num_documents is {settings.num_documents}, a micro-batch holds {micro_batch} questions: "
                "the other documents of a prompt "
                "come from its micro-batch; lower num_documents, or raise questions_per_step or --micro-batch"
            )
        if settings.negatives == "pool" and (bare := [q.question_id for q in questions if not q.candidate_ids]):
            raise InputError(
                f"instruct.negatives is 'pool', and {len(bare)} of {len(questions)} questions have no candidate_ids "
                f"({bare[0]!r} first); "
                "give a set with pools (pipelines.build_questions --pool-size 20), or set instruct.negatives=batch"
            )
        self.name, self.steps, self.optimiser = "instruct", settings.steps, settings.optimiser
        self.module: nn.Module = InstructStep(model, settings)
        roles = [
            GENERATOR,
            *[COMPRESSOR] * settings.train_compressor,
            *["memory_tokens"] * settings.train_memory_tokens,
        ]
        self._parameters = model.train_only(roles)
        self._model, self._questions, self._documents, self._config, self._micro_batch = (
            model,
            questions,
            documents,
            config,
            micro_batch,
        )

    def rows(self, step: int) -> int:
        """See the base class."""
        return self._config.instruct.questions_per_step

    def micro_batches(self, step: int, rank: int, world: int) -> list[InstructBatch]:
        """See the base class."""
        self._num_cut = 0
        rows = sample(self._config.seed, step, self.rows(step), len(self._questions))
        return [self._batch(step, part) for part in shard(rows, rank, world, self._micro_batch)]

    def _batch(self, step: int, rows: list[int]) -> InstructBatch:
        questions = [self._questions[r] for r in rows]
        own = list(dict.fromkeys(name for q in questions for name in right_documents(q, self._config.instruct)))
        rng = torch.Generator().manual_seed(self._config.seed * 1_000_003 + step)
        chosen = [self._chosen(question, own, rng) for question in questions]
        names = list(dict.fromkeys(name for one in chosen for name in one))
        limit = self._model.settings.max_document_tokens
        whole = [self._model.document_ids(self._documents[n]) for n in names]
        self._num_cut += sum(len(ids) > limit for ids in whole)
        position = {name: number for number, name in enumerate(names)}
        prompts = [self._model.prompts.question(q.question, q.answers[0]) for q in questions]
        return InstructBatch(
            prompts, [ids[:limit] for ids in whole], [[position[name] for name in one] for one in chosen]
        )

    def _chosen(self, question: Question, own: list[str], rng: torch.Generator) -> list[str]:
        """Ids of a prompt's documents, in their order; `own`: the right ones of the whole micro-batch."""
        settings = self._config.instruct
        forbidden = {*question.positive_ids, *question.exclude_ids}
        # Nor is a copy of a right document under another id a wrong one.
        texts = {self._documents.get(name) for name in question.positive_ids} - {None}
        others = [
            name
            for name in (question.candidate_ids if settings.negatives == "pool" else own)
            if name not in forbidden and self._documents[name] not in texts
        ]
        right = list(right_documents(question, settings))
        # The coin is thrown where it can matter only, so that older runs keep their random numbers.
        if settings.without_right and others and float(torch.rand((), generator=rng)) < settings.without_right:
            right = []
        others = [
            others[i]
            for i in torch.randperm(len(others), generator=rng).tolist()[: settings.num_documents - len(right)]
        ]
        chosen = [*right, *others]
        return [chosen[i] for i in torch.randperm(len(chosen), generator=rng).tolist()]
