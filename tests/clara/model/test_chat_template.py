"""A template renders the texts of a prompt as they are, the same on every day, or is refused in one line."""

import datetime
from pathlib import Path

import pytest

from clara.config.model import Backbone, Prompts
from clara.errors import InputError
from clara.model import chat_template
from clara.model.backbone_files import load_tokenizer
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.prompts import PromptBuilder
from clara.storage.manifest import read_manifest
from tests.helpers import tiny

CONTENT, PARTS = "{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
EITHER = "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + PARTS + "{% endif %}"
USER_ALONE = "{% if m['role'] == 'user' %}" + PARTS + "{% else %}{{ m['content'] }}{% endif %}"
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "Today: {{ date_string }}\n" + tiny.CHATML
)


def with_content(content: str) -> str:
    return tiny.CHATML.replace(CONTENT, content)


def built(folder: Path, template: object, **arguments: bool | int | float | str) -> PromptBuilder:
    tokenizer = tiny.write_tokenizer(folder, template=None)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return PromptBuilder(load_tokenizer(folder), Prompts(template_arguments=arguments))


def texts(builder: PromptBuilder) -> list[str]:
    prompt = builder.question("Who?", "Bob")
    return [builder.tokenizer.decode(ids) for ids in (prompt.left, prompt.right, prompt.answer)]


@pytest.mark.parametrize("content", [PARTS, EITHER, USER_ALONE], ids=["parts", "either", "the user's alone"])
def test_content_is_given_as_the_template_wants_it(tmp_path: Path, content: str):
    assert texts(built(tmp_path / "parts", with_content(content))) == texts(built(tmp_path / "plain", tiny.CHATML))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{{ m['content'] | upper }}", "does not keep what the user says"),
        ("{{ m['content'] | truncate(40) }}", "fails|does not keep what the user says"),
        ("{{ m['content'] | replace('\n', ' ') }}", "does not keep what the user says"),
        ("{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}", "does not keep what the assistant says"),
        ("{% if m['role'] != 'user' %}{{ m['content'] }}{% endif %}", "does not keep what the user says"),
        ("{{ m['content'] }} {{ m['content'] }}", "2 times, expected 1"),
        ("{{ m['content'] | random }}", "draws at random"),
        ("{{ tools_in_use.names }}{{ m['content'] }}", r"fails \('tools_in_use' is undefined\)"),
        ("{{ language }}{{ m['content'] }}", "prints language, which nothing defines; .*template_arguments.language"),
        ("{{ raise_exception('No, never!') }}", r"fails \(No, never!\)"),
        ("{{ m['content'] + 1 }}", "fails"),
        ("{{ 1 // 0 }}{{ m['content'] }}", "fails"),
        ("{% if %}", "cannot be read"),
    ],
)
def test_what_loses_a_text_or_fails_is_refused_with_the_folder(tmp_path: Path, content: str, reason: str):
    with pytest.raises(InputError, match=reason) as caught:
        built(tmp_path, with_content(content)).question("Who?\nAnd when?", "Bob")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: its chat template ")
    assert "\n" not in message


def test_turns_in_another_order_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="does not keep what the assistant says"):
        built(tmp_path, tiny.CHATML.replace("in messages", "in messages | reverse"))


def test_variables_that_are_given_or_tested_are_no_fault(tmp_path: Path):
    tested = "{% if language is defined %}{{ language }}{% endif %}{{ sep_token }}{{ bos_token }}" + tiny.CHATML
    assert texts(built(tmp_path / "tested", tested))[2] == "Bob<|im_end|>"
    given = built(tmp_path / "given", "{{ language }}\n" + tiny.CHATML, language="Frisian")
    assert texts(given)[0].startswith("Frisian\n")


def test_several_templates_need_a_default(tmp_path: Path):
    named = {"tool_use": tiny.CHATML, "rag": tiny.CHATML}
    with pytest.raises(InputError, match=r"several chat templates \(rag, tool_use\) and none is called default"):
        built(tmp_path / "without", named)
    plain = texts(built(tmp_path / "plain", tiny.CHATML))
    assert texts(built(tmp_path / "with", named | {"default": tiny.CHATML})) == plain


def test_the_date_is_the_same_on_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Tomorrow":
            return cls(2031, 5, 1, tzinfo=tz)

    today = built(tmp_path / "today", DATED)
    assert texts(today)[0].startswith("Today: 26 Jul 2024\n")
    assert today.prompts.template_arguments == {"strftime_now": "2024-07-26"}
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    monkeypatch.setattr(chat_template.datetime, "datetime", Tomorrow)
    assert texts(built(tmp_path / "tomorrow", DATED)) == texts(today)
    other = built(tmp_path / "other", DATED, strftime_now="2025-02-03")
    assert texts(other)[0].startswith("Today: 03 Feb 2025\n")
    with pytest.raises(InputError, match=r"prompts.template_arguments.strftime_now is 'now'; expected a date"):
        built(tmp_path / "wrong", DATED, strftime_now="now")


def test_a_checkpoint_states_the_date(tmp_path: Path):
    model = tiny.build_model(tiny.write_backbone(tmp_path / "lm", template=DATED))
    save_checkpoint(model, tmp_path / "checkpoint", stage="pretrain", recipe={})
    stated = read_manifest(tmp_path / "checkpoint")["prompts"]["template_arguments"]
    assert stated == {"strftime_now": "2024-07-26"}
    loaded = load_checkpoint(tmp_path / "checkpoint", Backbone(dtype="float32"))
    assert loaded.prompts.question("Who?", "Bob") == model.prompts.question("Who?", "Bob")
