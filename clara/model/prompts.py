"""Prompts as token ids, rendered by the chat template and split where the memory slots go.

Texts cannot inject special tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from tokenizers import Tokenizer

from clara.config.model import Prompts
from clara.errors import InputError
from clara.model.chat_template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOTS = "\ue000"
_ANSWER = "\ue001"


@dataclass(frozen=True)
class Prompt:
    """Token ids in front of the memory slots and after them, and the answer with the stop token (empty: none given).

    `weights` has a number for each answer token. Where a token spans prompt and answer (a generation prompt that ends
    in a space, a tokenizer that joins it to the next word), `answer` begins after as many tokens as the prompt alone
    has, as in the reference, and `right` ends with the merged
    token: the first piece of the answer may be part of it, which is then read and not asked for: neither in the loss
    nor in a likelihood. Without an answer `right` holds the prompt's own tokens, and generation says that piece itself.
    """

    left: list[int]
    right: list[int]
    answer: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Turn:
    """What was said earlier in a conversation."""

    role: Literal["user", "assistant"]
    text: str


def _plain(tokenizer: "PreTrainedTokenizerBase", split_special_tokens: bool) -> Tokenizer:
    """A fast tokenizer's own library, set to neither cut nor pad, whoever set it otherwise for a call before."""
    inner = cast(Tokenizer, cast(Any, tokenizer).backend_tokenizer)
    if inner.encode_special_tokens != split_special_tokens:
        inner.encode_special_tokens = split_special_tokens
    if inner.truncation is not None:
        inner.no_truncation()
    if inner.padding is not None:
        inner.no_padding()
    return inner


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a text as a fast tokenizer gives them through transformers, uncut and without special ones around it.

    Transformers puts a tenth of a millisecond around each call, and the library as much for character offsets: a short
    text takes no longer itself.
    """
    inner = _plain(tokenizer, tokenizer.split_special_tokens)
    return list(inner.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def token_spans(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    """Characters (start, end) of each token; special tokens in the text are plain text."""
    return list(_plain(tokenizer, True).encode(text, add_special_tokens=False).offsets)


class PromptBuilder:
    """Builds prompts with one tokenizer.

    `prompts` are the settings in use, including what the chat template gets, so that a CHECKPOINT records it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> None:
        if not tokenizer.is_fast or tokenizer.eos_token is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer must be a fast one with an eos token")
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, prompts)
        self.prompts = prompts = self._template.prompts
        specials = {
            str(t)
            for t in (
                *tokenizer.all_special_tokens,
                *(a.content for a in tokenizer.added_tokens_decoder.values() if a.special),
            )
        }
        self._specials = re.compile("|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True)))
        tail = self._render("", _SLOTS, _ANSWER).partition(_ANSWER)[2]
        # What the template puts after an answer, up to and with the first special token; line ends and the like behind
        # it are not trained on.
        first = self._specials.search(tail)
        stop = tail[: first.end()] if first else tokenizer.eos_token
        self._tail = tail if prompts.whole_tail else stop
        # A generator that learned the whole tail says its eos at the end of it.
        self.stop_ids = sorted(
            {self._ids(tokenizer.eos_token if tokenizer.eos_token in self._tail else stop)[-1], tokenizer.eos_token_id}
        )
        self._opening = tokenizer.bos_token or tokenizer.eos_token
        self._mark = self._plain_special()

    def safe(self, text: str) -> str:
        """The text with every special token broken by a space, so that none can be injected.

        One of a single character is left out.
        """
        text = text.replace(_SLOTS, "").replace(_ANSWER, "")
        while self._specials.search(text):
            text = self._specials.sub(
                lambda found: " ".join((found.group()[0], found.group()[1:])) if len(found.group()) > 1 else "", text
            )
        return text

    def _safe_answer(self, answer: str) -> str:
        # White space at its ends could merge with the template's and move the border between prompt and answer.
        return self.safe(answer).strip()

    def _plain_special(self) -> str:
        """A special token that splits a text as an added memory token would, without white space; else eos."""
        added = self.tokenizer.added_tokens_decoder.values()
        plain = [a.content for a in added if a.special and not (a.lstrip or a.rstrip or a.normalized or a.single_word)]
        return self.tokenizer.eos_token if self.tokenizer.eos_token in plain or not plain else plain[0]

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a document's or question's text as between bos and eos, without special ones.

        Tokenised alone it could begin otherwise: some tokenizers put a space in front of a text, but not of what
        follows a special token.
        """
        return self._ids(self._opening + self.safe(text) + self.tokenizer.eos_token)[1:-1]

    def question(self, question: str, answer: str | None = None, passages: Sequence[str] | None = None) -> Prompt:
        """A question over passages, with its answer in training.

        Args:
            question: text.
            answer: None leaves the prompt open.
            passages: their texts, which the prompt then holds, all of it in `right`; None: memory slots.
        """
        return self._prompt(self.prompts.answer_system, self._user(question, passages), answer)

    def conversation(
        self, earlier: Sequence[Turn], question: str, system: str = "", passages: Sequence[str] | None = None
    ) -> Prompt:
        """A question over passages, see `question`, after earlier turns; `system` follows the prompts' own instruction.

        Raises:
            InputError: the chat template takes no such turns.
        """
        user = self._user(question, passages)
        instruction = "\n".join(text for text in (self.prompts.answer_system, self.safe(system)) if text)
        return self._unanswered(self._render(instruction, user, None, earlier))

    def _user(self, question: str, passages: Sequence[str] | None) -> str:
        """The user's message. A passage or a question may hold the text of a placeholder itself."""
        documents = _SLOTS if passages is None else self.safe("\n\n".join(passages))
        front, _, back = self.prompts.answer_user.partition("{documents}")
        return documents.join(part.replace("{question}", self.safe(question)) for part in (front, back))

    def pairs(self, questions: Sequence[str], answers: Sequence[str], question_weight: float) -> Prompt:
        """Questions and answers generated from a memory; tokens outside the answers weigh `question_weight`."""
        text, spans = "", []
        for question, answer in zip(questions, answers, strict=True):
            text += f"{chr(10) if text else ''}Question: {self.safe(question)}\nAnswer: "
            start = len(text)
            text += self._safe_answer(answer)
            spans.append((start, len(text)))
        return self._prompt(
            self.prompts.pairs_system,
            self.prompts.pairs_user.replace("{documents}", _SLOTS),
            text,
            spans,
            question_weight,
        )

    def paraphrase(self, text: str, variant: int) -> Prompt:
        """The text, or other words for it, generated from a memory; `variant` chooses the instruction."""
        user = self.prompts.paraphrase_users[variant % len(self.prompts.paraphrase_users)].replace(
            "{documents}", _SLOTS
        )
        return self._prompt(self.prompts.paraphrase_system, user, text)

    def text(self, system: str, user: str, answer: str | None = None) -> Prompt:
        """A prompt without memory slots, for the plain LM on raw text: all of it in `right`."""
        return self._prompt(system, self.safe(user), answer)

    def _prompt(
        self,
        system: str,
        user: str,
        answer: str | None,
        spans: Sequence[tuple[int, int]] | None = None,
        outside: float = 1.0,
    ) -> Prompt:
        """`spans`: characters of the answer that weigh 1, while others weigh `outside`; None: all of it weighs 1."""
        rendered = self._render(system, user, None)
        if answer is None:
            return self._unanswered(rendered)
        left, mark, right = self._split(rendered)
        skip = 1 if mark else 0
        right_ids = self._ids(mark + right)[skip:]
        answer = self._safe_answer(answer)
        before = self._split(self._render(system, user, _ANSWER))[2].partition(_ANSWER)[0]
        encoded = self.tokenizer(
            mark + before + answer + self._tail, add_special_tokens=False, return_offsets_mapping=True
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        num_prompt = skip + len(right_ids)
        shift = len(mark) + len(before)
        end = shift + len(answer)
        if ids[skip:num_prompt] != right_ids:
            if before != right:
                # Templates whose assistant turn does not begin as the generation prompt ends would be trained on what
                # they never see.
                raise InputError(
                    f"{self.tokenizer.name_or_path}: the chat template renders an assistant turn unlike its "
                    "generation prompt; fix the template"
                )
            self._check_merged(
                answer,
                ids[:skip] == self._ids(mark),
                [begin < end and stop > shift for begin, stop in offsets[num_prompt:]],
            )
            right_ids = ids[skip:num_prompt]
        whole = [(0, len(answer))] if spans is None else spans
        weights = []
        for begin, stop in offsets[num_prompt:]:
            inside = begin >= end or any(begin < b + shift and stop > a + shift for a, b in whole)
            weights.append(1.0 if inside else outside)
        return Prompt(self._ids(left), right_ids, ids[num_prompt:], weights)

    def _unanswered(self, rendered: str) -> Prompt:
        left, mark, right = self._split(rendered)
        return Prompt(self._ids(left), self._ids(mark + right)[1 if mark else 0 :], [], [])

    def _check_merged(self, answer: str, slots_stay: bool, is_answer: Sequence[bool]) -> None:
        """Refuse an answer whose first token merges with the prompt's end, if that loses more than that token.

        Raises:
            InputError: nothing of it would be asked for, or the memory slots would be elsewhere.
        """
        if not slots_stay or not any(is_answer):
            lost = "all of it would count as prompt" if slots_stay else "the memory slots would move"
            raise InputError(
                f"{self.tokenizer.name_or_path}: the answer {answer[:60]!r} is one token with the end of the chat "
                "template's generation prompt, and "
                f"{lost}; let the generation prompt end without white space (and the assistant turn begin with it), "
                "or in a special token"
            )

    def _split(self, rendered: str) -> tuple[str, str, str]:
        """The text before the slots, with a special token in their place, and the text after them.

        Without slots everything is after them.

        Tokenised with that token the text is split where added memory tokens would split it.
        """
        left, slots, right = rendered.partition(_SLOTS)
        return (left, self._mark, right) if slots else ("", "", rendered)

    def _render(self, system: str, user: str, answer: str | None, earlier: Sequence[Turn] = ()) -> str:
        turns = [{"role": turn.role, "content": self.safe(turn.text)} for turn in earlier]
        turns.append({"role": "user", "content": user})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        if not system:
            return self._whole(turns)
        try:
            rendered = self._whole([{"role": "system", "content": system}, *turns])
        except InputError:
            rendered = ""
        if rendered and (system.strip() in rendered or not self.prompts.keep_system):
            return rendered
        # A template that refuses or drops the system role: its text goes in front of the first turn's.
        return self._whole([{**turns[0], "content": f"{system}\n{turns[0]['content']}"}, *turns[1:]])

    def _whole(self, turns: list[dict[str, str]]) -> str:
        """The turns as a text, with the memory slots and the answer once."""
        text = self._template.render(turns, generation=turns[-1]["role"] == "user")
        for mark in (_SLOTS, _ANSWER):
            wanted = sum(turn["content"].count(mark) for turn in turns)
            if text.count(mark) != wanted:
                raise InputError(
                    f"{self.tokenizer.name_or_path}: its chat template renders what a message holds "
                    f"{text.count(mark)} times, expected {wanted}; fix it"
                )
        return text

    def _ids(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text) if text else []
