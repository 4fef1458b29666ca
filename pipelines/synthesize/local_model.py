"""A model in a folder, run in the job: greedy replies in batches that depend on the requests alone."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import torch
from transformers.utils.logging import disable_progress_bar

from clara.config.model import Prompts
from clara.memory.batches import plan_batches
from clara.model.backbone_files import load_lm, load_tokenizer
from clara.model.checkpoint import check_device
from clara.model.prompts import PromptBuilder
from pipelines.synthesize.dialogues import Outcome
from pipelines.synthesize.folder_settings import FolderSettings
from pipelines.synthesize.prompts import Request
from pipelines.synthesize.replies import Reply


class FolderModel:
    """A causal LM with its tokenizer and chat template."""

    def __init__(self, settings: FolderSettings) -> None:
        """Load the model.

        Raises:
            InputError: no model there that transformers can read, a tokenizer without chat template, or no such device.
        """
        disable_progress_bar()  # the library's, for weights: the job has its own
        check_device(settings.device)
        lm = load_lm(settings.path, f"--model {settings.path}", dtype=settings.dtype)
        self._settings, self._lm = settings, cast(Any, lm).to(settings.device).eval()
        self._builder = PromptBuilder(
            load_tokenizer(settings.path), Prompts(template_arguments=settings.template_arguments)
        )
        own = getattr(lm.generation_config, "eos_token_id", None)
        self._stops = sorted(
            {*self._builder.stop_ids, *(own if isinstance(own, list) else [] if own is None else [own])}
        )
        self._longest = int(getattr(lm.config.get_text_config(), "max_position_embeddings", 0) or 0)

    def replies(self, requests: Sequence[Request]) -> list[Reply]:
        """A reply to each request; texts can't inject special tokens. A request that is too long gets an error."""
        prompts = [self._builder.text(self._builder.safe(r.system), r.user).right for r in requests]
        room = self._settings.max_reply_tokens
        found: dict[int, Reply] = {}
        for position, ids in enumerate(prompts):
            if self._longest and len(ids) + room > self._longest:
                found[position] = Reply(
                    "", error=f"{len(ids)} prompt and {room} reply tokens, the model has {self._longest} positions"
                )
        order = sorted((p for p in range(len(prompts)) if p not in found), key=lambda p: (len(prompts[p]), p))
        for batch in plan_batches([len(prompts[p]) for p in order], self._settings.batch_tokens, room):
            positions = [order[i] for i in batch]
            found.update(zip(positions, self._generate([prompts[p] for p in positions]), strict=True))
        return [found[position] for position in range(len(prompts))]

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]]) -> list[Reply]:
        longest, pad = max(map(len, prompts)), self._stops[0]
        device = self._lm.device
        ids_BL = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
        mask_BL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        output = self._lm.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=self._settings.max_reply_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._stops,
            pad_token_id=pad,
        )
        replies = []
        for prompt, row in zip(prompts, output[:, longest:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in self._stops), None)
            text = str(self._builder.tokenizer.decode(row[:end], skip_special_tokens=True))
            replies.append(Reply(text, end is None, len(prompt), len(row) if end is None else end + 1))
        return replies


def in_step(
    streams: Sequence[Generator[list[Request], list[Reply], Outcome]],
    replies: Callable[[list[Request]], list[Reply]],
    on_progress: Callable[[int], None],
) -> list[Outcome]:
    """Run streams together, with all their open requests at a time: batches depend on the streams alone.

    Args:
        streams: see `pipelines.synthesize.dialogues`.
        replies: asks the model.
        on_progress: called with the number of streams that have ended.
    """
    outcomes: dict[int, Outcome] = {}
    answers: dict[int, list[Reply] | None] = dict.fromkeys(range(len(streams)))
    while answers:
        wanted: dict[int, list[Request]] = {}
        for position, given in answers.items():
            try:
                wanted[position] = next(streams[position]) if given is None else streams[position].send(given)
            except StopIteration as end:
                outcomes[position] = end.value
        on_progress(len(outcomes))
        found = iter(replies([request for requests in wanted.values() for request in requests]))
        answers = {position: [next(found) for _ in requests] for position, requests in wanted.items()}
    return [outcomes[position] for position in range(len(streams))]
