from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.backends.base import Done, Options, Role
from kvchat.backends.local import LocalBackend
from kvchat.server.calls import CallWatch
from kvchat.server.memory import Memory
from kvchat.server.said import Call, Said, turns_of
from tests.server.client import Client
from tests.server.talker import TOOL, Talker, marked, saying
from tests.tiny import tiny_config, tiny_folder

FORMS = {
    "hermes": marked("Rome"),
    "hermes, twice": marked("Rome") + "\n" + marked("Oslo"),
    "hermes, not ended": marked("Rome").removesuffix("</tool_call>"),
    "llama": '{"name": "weather", "parameters": {"city": "Rome"}}',
    "llama, marked": '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}',
    "mistral": '[{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "weather", "arguments": {"city": "Oslo"}}]',
    "mistral, marked": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]',
}
TEXTS = (
    "It is sunny.",
    '{"name": "another", "parameters": {}}',
    '{"city": "Rome"}',
    "[1, 2, 3]",
    "<tool_call>\nnot JSON\n</tool_call>",
    "Use <tool_ca",
    '{"name": "weather", "parameters"',
    "",
    "  \n",
    "[TOOL_CALLS] none",
)


def told(text: str, size: int) -> tuple[str, tuple[Call, ...]]:
    watch = CallWatch({"weather"})
    shown = "".join(watch.feed(text[start : start + size]) for start in range(0, len(text), size))
    rest, calls = watch.finish()
    return shown + rest, calls


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_a_call_is_told_from_text_in_each_known_form(form: str, size: int) -> None:
    text, calls = told(FORMS[form], size)
    cities = [json.loads(call.arguments)["city"] for call in calls]
    assert text.strip() == "" and cities == ["Rome", "Oslo"][: len(cities)] and cities
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_of_a_known_tool_stays_text(text: str, size: int) -> None:
    assert told(text, size) == (text, ())


@given(st.text(alphabet='<tool_call>/{}[]"name: weather,\n', max_size=60), st.integers(1, 9))
def test_no_text_gets_lost_however_it_comes(text: str, size: int) -> None:
    shown, calls = told(text, size)
    assert shown == text or calls


def test_text_before_a_call_is_shown_at_once() -> None:
    watch = CallWatch({"weather"})
    assert watch.feed("Let me look. ") == "Let me look. "
    assert watch.feed("<tool_") == "" and watch.feed('call>{"name"') == ""


@pytest.fixture
def talker(serve: Callable[..., Client]) -> Client:
    return serve(Talker(), defaults=Options())


def test_a_call_is_the_same_streamed_or_not(talker: Client) -> None:
    message = saying(f"Let me see. {marked('Rome')}")
    (choice,) = talker.chat(message, tools=[TOOL]).json["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see. "
    assert call["type"] == "function" and json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    deltas = [event["choices"][0] for event in talker.chat(message, tools=[TOOL], stream=True).events]
    streamed = [one for delta in deltas for one in delta["delta"].get("tool_calls", [])]
    assert [one["function"] for one in streamed] == [call["function"]] and streamed[0]["index"] == 0
    assert "".join(delta["delta"].get("content") or "" for delta in deltas) == "Let me see. "
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_without_tools_or_with_none_to_be_called_it_stays_text(talker: Client) -> None:
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        (choice,) = talker.chat(saying(marked("Rome")), **fields).json["choices"]
        assert choice["message"]["content"] == marked("Rome") and choice["finish_reason"] == "stop"


def test_a_template_that_knows_no_tools_is_told_of_them_in_its_system_prompt(talker: Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    reply = talker.post("/v1/chat/completions", {"model": "default", "messages": messages, "tools": [TOOL]})
    assert reply.status == 200
    backend: Any = talker.server.service.backend
    system, _, called, result = backend.histories[-1]
    assert system.text.startswith("Be brief.") and json.dumps(TOOL, sort_keys=True) in system.text
    assert (called.role, called.text) == (Role.ASSISTANT, marked("Rome"))
    assert (result.role, result.text) == (Role.USER, "<tool_response>\nsunny\n</tool_response>")


KNOWING = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] or '' }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments.city }}</tool_call>{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    folder = tmp_path_factory.mktemp("knowing")
    path = tiny_folder(folder / "tiny", template=KNOWING, max_position_embeddings=4000)
    backend = LocalBackend(tiny_config(path, folder, chat__save=False))
    yield backend
    backend.close()


def test_a_template_that_knows_tools_is_handed_them_and_what_became_of_them(
    knowing: LocalBackend, serve: Callable[..., Client]
) -> None:
    client = serve(knowing)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    body = {
        "model": "default",
        "messages": messages,
        "tools": [TOOL],
        "return_token_ids": True,
        "max_tokens": 5,
    }
    ids = client.post("/v1/chat/completions", body).json["prompt_token_ids"]
    tokenizer = knowing._worker.wait().model.tokenizer
    expected = (
        f"<|im_start|>tools\n{json.dumps([TOOL], sort_keys=True)}<|im_end|>\n<|im_start|>user\nRome?<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>weather Rome</tool_call><|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids == list(tokenizer.encode(expected, is_start=True))


def test_with_tools_a_conversation_is_cached_to_the_token(
    knowing: LocalBackend, serve: Callable[..., Client]
) -> None:
    client, messages, held = serve(knowing), ["which tools?"], 0
    for number in range(4):
        reply = client.chat(*messages, tools=[TOOL], temperature=2.0, seed=number).json
        usage = reply["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= held
        held = usage["total_tokens"]
        messages += [reply["choices"][0]["message"]["content"], "and?"]


def test_a_remembered_call_goes_in_as_the_ids_that_it_was(client: Client) -> None:
    """A client gives calls back as objects; the ids that they were generated as are found by these."""
    from kvchat.server.memory import Kept
    from kvchat.server.said import keys_of

    memory = Memory()
    question = Said(Role.USER, "Rome?")
    call = Call("call_1", "weather", '{"city": "Rome"}')
    answer = Said(Role.ASSISTANT, "", calls=(call,))
    memory.keep(keys_of([question, answer])[-1], Kept(marked("Rome"), "", b"\x05\0\0\0\x06\0\0\0", "t"))
    given_back = Said(Role.ASSISTANT, "", calls=(Call("another", "weather", '{"city":"Rome"}'),))
    _, turn = turns_of([question, given_back], memory, takes_tools=True)
    assert turn.tokens == (5, 6) and turn.text == marked("Rome")
    other = Said(Role.ASSISTANT, "", calls=(Call("another", "weather", '{"city":"Oslo"}'),))
    assert turns_of([question, other], memory, takes_tools=True)[1].tokens is None


def test_the_library_answers_the_same_with_tools(knowing: LocalBackend, serve: Callable[..., Client]) -> None:
    from kvchat.backends.base import Turn

    turns = [Turn(Role.USER, "the same?", tools=json.dumps([TOOL], sort_keys=True))]
    *_, done = knowing.answer(turns, Options(temperature=0.0, max_tokens=12, repeat_stop=False))
    assert isinstance(done, Done)
    reply = serve(knowing).chat("the same?", tools=[TOOL]).json
    assert reply["choices"][0]["message"]["content"] == done.answer.text
