"""The OpenAI-compatible routes, asked by the real client."""

from collections.abc import Iterator

import openai
import pytest
from fastapi.testclient import TestClient

from clara.system import System
from tests.helpers.http_service import client_of

QUESTION = "What does the market of Jorvik on the Wend sell?"
USER = {"role": "user", "content": QUESTION}


@pytest.fixture(scope="module")
def http(system: System) -> Iterator[TestClient]:
    with client_of(system, key="secret", model_name="towns", max_new_tokens=12) as found:
        yield found


@pytest.fixture(scope="module")
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(api_key="secret", base_url="http://testserver/v1", http_client=http, max_retries=0)


def test_the_models_are_listed(client: openai.OpenAI, http: TestClient) -> None:
    assert [model.id for model in client.models.list()] == ["towns"]
    assert client.models.retrieve("towns").owned_by == "clara"
    with pytest.raises(openai.NotFoundError, match="model 'gpt' is not served here; this is 'towns'"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.chat.completions.create(model="gpt", messages=[USER])
    with pytest.raises(openai.AuthenticationError, match="a valid key is needed"):
        openai.OpenAI(api_key="no", base_url="http://testserver/v1", http_client=http).models.list()


def test_an_answer_cites_its_passages(client: openai.OpenAI, system: System) -> None:
    expected = system.ask(QUESTION, passages=3, max_new_tokens=12)
    found = client.chat.completions.create(
        model="towns", messages=[USER], extra_body={"passages": 3}, temperature=0, top_p=1, n=1, seed=7, user="me"
    )
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == "length"
    assert choice.message.annotations
    cited = [annotation.url_citation for annotation in choice.message.annotations]
    assert [(c.url, c.title) for c in cited] == [(p.document_id, p.title) for p in expected.passages]
    assert {(c.start_index, c.end_index) for c in cited} == {(0, len(expected.text))}
    assert found.model_extra is not None
    assert [p["text"] for p in found.model_extra["passages"]] == [p.text for p in expected.passages]
    assert found.usage is not None
    assert found.usage.completion_tokens == 12
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12
    longer = client.chat.completions.create(model="towns", messages=[USER], extra_body={"passages": 4})
    assert longer.usage is not None
    model = system.retriever.model
    one = model.num_memory_tokens + int(model.settings.markers)
    assert longer.usage.prompt_tokens == found.usage.prompt_tokens + one


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="towns", messages=[USER])
    chunks = list(
        client.chat.completions.create(
            model="towns", messages=[USER], stream=True, stream_options={"include_usage": True}
        )
    )
    *answer, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in answer] == [None] * (len(answer) - 1) + ["length"]
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert whole.model_extra is not None
    assert answer[0].model_extra is not None
    assert answer[0].model_extra["passages"] == whole.model_extra["passages"]
    last = answer[-1].choices[0].delta.model_extra
    assert last is not None
    assert whole.choices[0].message.annotations
    assert last["annotations"] == [a.model_dump() for a in whole.choices[0].message.annotations]
    assert len({chunk.id for chunk in chunks}) == 1


def test_earlier_messages_are_context_and_the_last_is_searched_for(client: openai.OpenAI, system: System) -> None:
    earlier = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Is Jorvik on the Wend?"}]},
        {"role": "assistant", "content": "It is."},
    ]
    alone = client.chat.completions.create(model="towns", messages=[USER])
    found = client.chat.completions.create(model="towns", messages=[*earlier, USER])
    assert found.model_extra is not None
    assert alone.model_extra is not None
    assert [p["row_id"] for p in found.model_extra["passages"]] == [p["row_id"] for p in alone.model_extra["passages"]]
    assert found.usage is not None
    assert alone.usage is not None
    text = "Be short.\n<|im_start|>user\nIs Jorvik on the Wend?<|im_end|>\n<|im_start|>assistant\nIt is.<|im_end|>\n"
    assert found.usage.prompt_tokens - alone.usage.prompt_tokens == pytest.approx(
        len(system.retriever.model.tokenizer.encode(text, add_special_tokens=False)), abs=3
    )


def test_a_reply_goes_back_as_an_earlier_message(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="towns", messages=[USER]).choices[0].message
    as_sent = client.chat.completions.create(model="towns", messages=[USER, first, USER])  # type: ignore[list-item]
    dumped = client.chat.completions.create(model="towns", messages=[USER, first.model_dump(), USER])  # type: ignore[list-item]
    plain = {"role": "assistant", "content": first.content}
    expected = client.chat.completions.create(model="towns", messages=[USER, plain, USER])  # type: ignore[list-item]
    assert as_sent.usage == dumped.usage == expected.usage
    assert as_sent.choices == dumped.choices == expected.choices


def test_settings_at_the_values_that_change_nothing_are_taken(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="towns", messages=[USER])
    floats = {"temperature": 0.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    unset = dict.fromkeys(("stop", "tools", "tool_choice", "top_logprobs", "logit_bias", "functions", "function_call"))
    more = {"logprobs": False, "store": False, "response_format": {"type": "text"}, "stream_options": None}
    found = client.chat.completions.create(model="towns", messages=[USER], **floats, extra_body={**unset, **more})
    assert found.choices == plain.choices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": ["."]}, "stop: this service does not do that; leave it out"),
        ({"logprobs": True}, "logprobs: Input should be False"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: this service does not do that"),
        ({"tool_choice": "required"}, "tool_choice: Input should be 'none'"),
        ({"response_format": {"type": "json_object"}}, "response_format.type: Input should be 'text'"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}, USER]}, "messages.0.content"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "Yes."}]}, "the last message has to be the user's"),
        ({"messages": [{"role": "user", "content": ""}]}, "the last message has to be the user's, with some text"),
        ({"messages": [{"role": "tool", "content": "x"}, USER]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x" * 16_001}, USER]}, "characters before the question: 16001"),
        ({"messages": [{"role": "user", "content": "x " * 4_000}, USER]}, "the language model takes 2048 together"),
        ({"temperature": 0.7}, "temperature: Input should be 0"),
        ({"n": 2}, "n: Input should be 1"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "send one"),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream"),
        ({"tools": []}, "tools: this service does not do that; leave it out"),
        ({"extra_body": {"temprature": None}}, "temprature: Extra inputs are not permitted"),
    ],
)
def test_what_would_be_ignored_is_refused(client: openai.OpenAI, change: dict[str, object], message: str) -> None:
    for stream in (False,) if "stream_options" in change else (False, True):
        with pytest.raises(openai.UnprocessableEntityError, match=message):
            client.chat.completions.create(**{"model": "towns", "messages": [USER], "stream": stream, **change})
