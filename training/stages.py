"""Stages `pretrain` and `instruct` for the loop: which parameters train, and each step's batches."""

import torch
from torch import nn

from clara.config import Config, Optimiser
from clara.examples import Example
from clara.model import COMPRESSOR, GENERATOR, ClaraModel
from clara.prompts import Prompt
from clara.questions import Question
from clara.steps import InstructBatch, InstructStep, PretrainBatch, PretrainStep
from training.loop import Stage, sample, shard


def cut(prompt: Prompt, max_answer_tokens: int) -> Prompt:
    """The prompt with its answer cut to a length (the stop token goes with the rest: what was cut is not over)."""
    return Prompt(prompt.left, prompt.right, prompt.answer[:max_answer_tokens], prompt.weights[:max_answer_tokens])


class PretrainStage(Stage):
    """Compressor and generator (memory tokens, on demand the backbone) learn to tell a document from its memory."""

    def __init__(self, model: ClaraModel, examples: list[Example], config: Config, micro_batch: int) -> None:
        settings = config.pretrain
        self.name, self.steps, self.optimiser = "pretrain", settings.steps, settings.optimiser
        self.module: nn.Module = PretrainStep(model, settings)
        self.roles = [COMPRESSOR, GENERATOR, *["memory_tokens"] * settings.train_memory_tokens, *["backbone"] * settings.train_backbone]
        self._parameters = model.train_only(self.roles)
        self._model, self._examples, self._config, self._micro_batch = model, examples, config, micro_batch
        self.num_cut = 0

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """See the base class."""
        return [(self.optimiser.learning_rate, self._parameters)]

    def rows(self, step: int) -> int:
        """See the base class."""
        return self._config.pretrain.documents_per_step

    def micro_batches(self, step: int, rank: int, world: int) -> list[PretrainBatch]:
        """See the base class."""
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
            self.num_cut += len(ids) > limit or len(prompt.answer) > settings.max_answer_tokens
            documents.append(ids[:limit])
            prompts.append(cut(prompt, settings.max_answer_tokens))
        return PretrainBatch(documents, prompts)

    def _prompt(self, example: Example, step: int) -> Prompt:
        builder = self._model.prompts
        if example.kind in ("qa", "cloze"):
            return builder.pairs(example.questions, example.answers, self._config.pretrain.question_weight)
        return builder.paraphrase(example.answers[0] if example.answers else example.document, step)


class InstructStage(Stage):
    """Answers from K memories: the right document's and others of the micro-batch, in random order."""

    def __init__(self, model: ClaraModel, questions: list[Question], documents: dict[str, str], config: Config, micro_batch: int) -> None:
        settings = config.instruct
        self.name, self.steps, self.optimiser = "instruct", settings.steps, settings.optimiser
        self.module: nn.Module = InstructStep(model, settings)
        roles = [GENERATOR, *[COMPRESSOR] * settings.train_compressor, *["memory_tokens"] * settings.train_memory_tokens]
        self._parameters = model.train_only(roles)
        self._model, self._questions, self._documents, self._config, self._micro_batch = model, questions, documents, config, micro_batch

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """See the base class."""
        return [(self.optimiser.learning_rate, self._parameters)]

    def rows(self, step: int) -> int:
        """See the base class."""
        return self._config.instruct.questions_per_step

    def micro_batches(self, step: int, rank: int, world: int) -> list[InstructBatch]:
        """See the base class."""
        rows = sample(self._config.seed, step, self.rows(step), len(self._questions))
        return [self._batch(step, part) for part in shard(rows, rank, world, self._micro_batch)]

    def _batch(self, step: int, rows: list[int]) -> InstructBatch:
        questions = [self._questions[r] for r in rows]
        names = list(dict.fromkeys(q.positive_ids[0] for q in questions))
        limit = self._model.settings.max_document_tokens
        documents = [self._model.document_ids(self._documents[n])[:limit] for n in names]
        dice = torch.Generator().manual_seed(self._config.seed * 1_000_003 + step)
        selected = []
        for question in questions:
            right = names.index(question.positive_ids[0])
            forbidden = {*question.positive_ids, *question.exclude_ids}
            others = [i for i, n in enumerate(names) if n not in forbidden]
            others = [others[i] for i in torch.randperm(len(others), generator=dice).tolist()[: self._config.instruct.num_documents - 1]]
            chosen = [right, *others]
            selected.append([chosen[i] for i in torch.randperm(len(chosen), generator=dice).tolist()])
        prompts = [self._model.prompts.question(q.question, q.answers[0]) for q in questions]
        return InstructBatch(prompts, documents, selected)
