"""A tokenizer's chat template. What it renders is a function of the messages alone, and holds them as they are."""

import datetime
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta, nodes

from clara.config.model import Prompts
from clara.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_THINKING, _CLOCK = "enable_thinking", "strftime_now"
_DATE = "2024-07-26"
"""The date that a template sees. Any would do, as long as it is the same on every day."""
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_FORMS = ((), ("system", "user", "assistant"), ("user",), ("user", "assistant"), ("system", "user"))
"""Roles whose content is a list of parts, in the order in which they are tried."""
_PROBES = {"system": "A system's text.", "user": "A user's text.", "assistant": "An assistant's text."}


class ChatTemplate:
    """Renders turns: dictionaries with `role` and `content`.

    Attributes:
        prompts: the settings in use, with the thinking mode and the date that the template gets, so that a CHECKPOINT
            records them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> None:
        """Compile the template, and find out whether it wants the content of a message as a text or as parts.

        Raises:
            InputError: there is none, it cannot be compiled, it fails, or it does not keep the texts of a prompt.
        """
        self._name = tokenizer.name_or_path
        source = self._source(tokenizer)
        self.prompts = self._settled(source, prompts)
        arguments: dict[str, Any] = dict(self.prompts.template_arguments)
        if _CLOCK in arguments:
            arguments[_CLOCK] = self._clock(str(arguments[_CLOCK]))
        self._values = {**tokenizer.special_tokens_map, "tools": None, "documents": None, **arguments}
        self._compiled = self._compile(source)
        self._parts = self._form()

    def render(self, turns: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        """The text of some turns.

        Args:
            turns: a system's first, if there is one, then a user's, then an assistant's.
            generation: end with what precedes an answer.

        Raises:
            InputError: the template fails, or what the user or the assistant says is not in the text, as it is and in
                order. The system's may be missing.
        """
        messages = [
            {"role": t["role"], "content": [{"type": "text", "text": t["content"]}]}
            if t["role"] in self._parts
            else dict(t)
            for t in turns
        ]
        try:
            text = self._compiled.render(messages=messages, add_generation_prompt=generation, **self._values)
        except _FAILURES as error:
            reason = " ".join(str(error).split())
            raise self._refusal(
                f"fails ({reason:.200}); give a variable that it wants with prompts.template_arguments, or fix it"
            ) from error
        position = 0
        for turn in turns:
            if turn["role"] == "system":
                continue
            content = turn["content"].strip()
            if (found := text.find(content, position)) < 0:
                raise self._refusal(
                    f"does not keep what the {turn['role']} says: {content[:60]!r} is not in what it renders; fix it"
                )
            position = found + len(content)
        return text

    def _source(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        if not tokenizer.chat_template:
            raise InputError(
                f"{self._name}: the tokenizer has no chat template; add chat_template.jinja to the model's folder"
            )
        try:
            return str(tokenizer.get_chat_template())
        except ValueError as error:
            known = ", ".join(sorted(tokenizer.chat_template)) if isinstance(tokenizer.chat_template, dict) else ""
            raise InputError(
                f"{self._name}: the tokenizer has several chat templates ({known}) and none is called default; write "
                "the one to use to chat_template.jinja in the model's folder"
            ) from error

    def _settled(self, source: str, prompts: Prompts) -> Prompts:
        """The settings with what the template knows and nothing else was given for.

        Thinking is off: left unset, such a template invites thoughts in front of the answer, which no answer in
        training has and a short one has no room for. The date is fixed.
        """
        added: dict[str, Any] = {}
        for name, value in ((_THINKING, False), (_CLOCK, _DATE)):
            if name not in prompts.template_arguments and re.search(rf"\b{name}\b", source):
                added[name] = value
        if _CLOCK in added:
            logger.info(
                "%s: its chat template shows a date, which is %s on every day; another one is given with "
                "prompts.template_arguments.%s",
                self._name,
                _DATE,
                _CLOCK,
            )
        if not added:
            return prompts
        return prompts.model_copy(update={"template_arguments": {**prompts.template_arguments, **added}})

    def _clock(self, date: str) -> Any:
        """What the template calls in place of the clock."""
        try:
            now = datetime.datetime.fromisoformat(date)
        except ValueError as error:
            raise InputError(
                f"prompts.template_arguments.{_CLOCK} is {date!r}; expected a date as {_DATE}: the chat template of "
                f"{self._name} shows it"
            ) from error
        return lambda form: now.strftime(form)

    def _compile(self, source: str) -> jinja2.Template:
        # The library's own function, so that a template means what it means there; its public one takes no clock.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            compiled: jinja2.Template = _compile_jinja_template(source)
            parsed = compiled.environment.parse(source)
        except _FAILURES as error:
            raise self._refusal(f"cannot be read ({error}); fix it") from error
        if "random" in {found.name for found in parsed.find_all(nodes.Filter)}:
            raise self._refusal("draws at random, and a prompt must be the same every time; fix it")
        known = {*self._values, *compiled.environment.globals, "messages", "add_generation_prompt"}
        if missing := sorted(_printed(parsed) - known):
            raise self._refusal(
                f"prints {', '.join(missing)}, which nothing defines; give it with "
                f"prompts.template_arguments.{missing[0]}"
            )
        return compiled

    def _form(self) -> tuple[str, ...]:
        """The roles whose content must be a list of parts: the first form that keeps all texts, or all but a system's.

        Raises:
            InputError: no form keeps the texts.
        """
        kept: list[tuple[str, ...]] = []
        first: InputError | None = None
        for form in _FORMS:
            self._parts = form
            try:
                self._probe("user", "assistant")
                kept.append(form)
                if _PROBES["system"] in self._probe("system", "user", "assistant"):
                    return form
            except InputError as error:
                first = first or error
        if kept:
            return kept[0]
        assert first is not None  # there are forms
        raise first

    def _probe(self, *roles: str) -> str:
        turns = [{"role": role, "content": _PROBES[role]} for role in roles]
        self.render(turns[:-1], generation=True)
        text = self.render(turns, generation=False)
        if "'type'" in text or '"type"' in text:
            raise self._refusal("writes content that is a list of parts as a list; fix it")
        return text

    def _refusal(self, reason: str) -> InputError:
        return InputError(f"{self._name}: its chat template {reason}")


def _printed(parsed: nodes.Template) -> set[str]:
    """Variables that a template prints as they are, without a test whether they exist; tokens may be missing."""
    printed = {
        child.name
        for output in parsed.find_all(nodes.Output)
        for child in output.nodes
        if isinstance(child, nodes.Name)
    }
    tested = {name.name for test in parsed.find_all(nodes.Test) for name in test.find_all(nodes.Name)}
    tested |= {name.name for branch in parsed.find_all(nodes.If) for name in branch.test.find_all(nodes.Name)}
    found = (printed & meta.find_undeclared_variables(parsed)) - tested
    return {name for name in found if not name.endswith("_token")}
