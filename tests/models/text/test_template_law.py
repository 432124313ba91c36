"""The law of prompts: whatever template, each message stands in them once and in order, as its text or its very ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvchat.models.text.template import ChatTemplate, Message
from kvchat.models.text.template_input import Rendering, TemplateInput, Trace, placeholder
from kvchat.models.text.template_kind import kind_of
from kvchat.models.text.tokenizer import ChatTokenizer
from tests.models.chat_templates import byte_tokenizer
from tests.models.past_templates import EVERY, PAST, Past

KINDS = ("ids", "ids with thought", "text", "text with thought", "forged")
TURNS = st.lists(st.sampled_from(KINDS), max_size=29)
each = pytest.mark.parametrize("name", EVERY)


def letters(template: ChatTemplate, text: str) -> list[int]:
    """A text's ids letter by letter, as no tokenizer would split it, unless that would put spaces between them."""
    ids = [token for letter in text for token in template.tokenizer.encode_as_text(letter)]
    whole = template.tokenizer.encode_as_text(text)
    return ids if template.tokenizer.decode(ids) == text else list(whole)


def answer(
    template: ChatTemplate, history: Sequence[Message], number: int, kind: str, think: bool | None
) -> Message:
    """An answer of this kind, as it would be generated behind this history."""
    text = f"reply-{number}-given"
    thought = f"musing-{number}-made" if "thought" in kind else ""
    if kind.startswith("text"):
        return Message("assistant", text, thought)
    if kind == "forged":
        return Message("assistant", text + next(iter(template.tokenizer.control), ""))
    marks = template.marks
    is_open = template.opens_reasoning(history, think=think)
    if marks is None or not (thought or is_open):
        return Message("assistant", text, tokens=letters(template, text))
    head = template.tokenizer.encode(f"{'' if is_open else marks.start}{thought}{marks.end}")
    return Message("assistant", text, thought, [*head, *letters(template, text)])


def conversation(
    template: ChatTemplate, kinds: Sequence[str], *, system: bool = True, think: bool | None = None
) -> list[Message]:
    """A dialogue with an answer of each kind, and a question at its end."""
    history = [Message("system", "rules-of-all")] if system else []
    for number, kind in enumerate(kinds):
        history.append(Message("user", f"query-{number}-asked"))
        history.append(answer(template, history, number, kind, think))
    return [*history, Message("user", f"query-{len(kinds)}-asked")]


def written(ids: Sequence[int]) -> str:
    return "".join(f" {token} " for token in ids)


def assert_lawful(template: ChatTemplate, history: Sequence[Message], *, think: bool | None = None) -> None:
    """Each message once and in order, nothing of a placeholder, nothing forged."""
    ids = template.prompt(history, think=think)
    text, numbers = template.tokenizer.decode(ids), written(ids)
    assert not re.search("[\ue000-\uf8ff]", text)
    at = 0
    for message in history:
        assert text.count(message.text) == 1, message
        if message.role != "system":  # it may move
            assert text.index(message.text) >= at, message
            at = text.index(message.text)
        if message.tokens is not None:
            assert numbers.count(written(letters(template, message.text))) == 1, message


@each
@settings(max_examples=6, deadline=None)
@given(kinds=TURNS, system=st.booleans(), think=st.sampled_from([None, True, False]))
def test_every_message_stands_in_the_prompt_once_and_in_order(
    name: str, kinds: list[str], system: bool, think: bool | None
) -> None:
    template = EVERY[name]
    assert_lawful(template, conversation(template, kinds, system=system, think=think), think=think)


@pytest.mark.slow
@each
@settings(max_examples=300, deadline=None)
@given(kinds=TURNS, system=st.booleans(), then=st.sampled_from([None, True, False]), now=st.booleans())
def test_every_message_stands_in_the_prompt_whatever_was_asked_for_before(
    name: str, kinds: list[str], system: bool, then: bool | None, now: bool
) -> None:
    template = EVERY[name]
    assert_lawful(template, conversation(template, kinds, system=system, think=then), think=now)


@each
def test_thirty_thoughtful_answers_stand_in_the_prompt(name: str) -> None:
    template = EVERY[name]
    assert_lawful(template, conversation(template, ["ids with thought"] * 30))


@pytest.mark.parametrize("past", [past for past in PAST if past.keeps], ids=lambda past: past.name)
def test_where_reasoning_stays_each_prompt_begins_with_the_one_before_and_its_answer(past: Past) -> None:
    template = EVERY[past.name]
    history = [Message("system", "rules-of-all")]
    whole: list[int] = []
    for number in range(8):
        history.append(Message("user", f"query-{number}-asked"))
        asked = template.prompt(history)
        assert asked[: len(whole)] == whole
        history.append(answer(template, history, number, "ids with thought", None))
        whole = [*asked, *(history[-1].tokens or ())]


@pytest.mark.parametrize("past", [past for past in PAST if not past.keeps], ids=lambda past: past.name)
def test_where_reasoning_goes_none_of_it_is_left_of_an_old_answer(past: Past) -> None:
    template = EVERY[past.name]
    text = template.tokenizer.decode(template.prompt(conversation(template, ["ids with thought"] * 3)))
    assert "musing-0" not in text
    assert "reply-0" in text


@pytest.mark.parametrize("past", PAST, ids=lambda past: past.name)
def test_the_marks_of_reasoning_are_known_or_found(past: Past) -> None:
    marks = EVERY[past.name].marks
    if past.marks is None:
        assert marks is None
    else:
        assert marks is not None
        start, end = past.marks
        assert (marks.start, f"{marks.end}{marks.lead}"[: len(end)]) == (start.strip(), end)


def test_at_least_thirty_templates_stand_for_all() -> None:
    assert len(EVERY) >= 30


def rendered_often(template: ChatTemplate) -> Callable[[], int]:
    """Counts how much text the template renders from now on."""
    program, sizes = template._program, [0]
    render = program.render

    def counted(messages: Sequence[dict[str, object]], *args: object, **names: object) -> str:
        sizes[0] += len(messages)
        return render(messages, *args, **names)  # type: ignore[arg-type]

    program.render = counted  # type: ignore[method-assign, assignment]
    return lambda: sizes[0]


@pytest.mark.parametrize("name", ["all in the content", "qwen3"])
def test_a_prompt_renders_its_messages_once_however_many_have_reasoning(name: str) -> None:
    template = next((past.template() for past in PAST if past.name == name), EVERY[name])
    history = conversation(template, ["ids with thought"] * 20)
    total = rendered_often(template)
    template.prompt(history)
    assert total() == len(history)


def made(source: str, said: list[str]) -> ChatTemplate:
    tokenizer = ChatTokenizer(byte_tokenizer(("<|a|>",), ("<think>", "</think>")), control_text=source)
    return ChatTemplate(source, tokenizer, notify=said.append)


def test_a_template_that_takes_placeholders_apart_gets_texts_and_that_is_said_once() -> None:
    said: list[str] = []
    template = made(
        "{% for m in messages %}{{ m.role }}:{% for c in m.content %}{{ c }}{{ '' if c.isalnum() else ' ' }}{% endfor %}"
        "<|a|>{% endfor %}",
        said,
    )
    history = [
        Message("user", "one"),
        Message("assistant", "two", tokens=letters(template, "two")),
        Message("user", "three"),
    ]
    text = template.tokenizer.decode(template.prompt(history))
    template.prompt(history)
    assert [word in text for word in ("one", "two", "three")] == [True] * 3
    assert not re.search("[\ue000-\uf8ff]", text)
    assert len(said) == 1
    assert "plain text" in said[0]


def test_a_template_that_leaves_messages_out_is_named() -> None:
    said: list[str] = []
    template = made("{% for m in messages[-2:] %}{{ m.role }}:{{ m.content }}<|a|>{% endfor %}", said)
    history = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    template.prompt(history)
    assert said == ["the chat template leaves out or changes 1 of 3 messages"]


def windowed(said: list[str], size: int) -> ChatTemplate:
    return made(
        f"{{% for m in messages[-{size}:] %}}{{{{ m.role }}}}:{{{{ m.content }}}}<|a|>{{% endfor %}}", said
    )


def test_a_fault_of_a_template_is_named_once_however_many_messages_it_concerns() -> None:
    said: list[str] = []
    template = windowed(said, 2)
    history = conversation(template, ["ids"] * 6)
    for end in range(2, len(history) + 1, 2):
        template.prompt(history[:end])
        template.at(0.0).prompt(history[:end])
    assert said == ["the chat template leaves out or changes 2 of 4 messages"]


def test_nothing_is_said_of_conversations_that_only_try_a_template() -> None:
    said: list[str] = []
    template = windowed(said, 2)
    kind_of(template)
    assert said == []
    template.prompt(conversation(template, ["ids"] * 3))
    assert len(said) == 1


def test_a_template_that_drops_messages_breaks_none_up_though_their_words_come_again() -> None:
    said: list[str] = []
    template = windowed(said, 1)
    history = [
        Message("user", "no"),
        Message("assistant", "no", tokens=letters(template, "no")),
        Message("user", "no, no, no and no"),
    ]
    template.prompt(history)
    assert said == ["the chat template leaves out or changes 2 of 3 messages"]


def test_a_text_is_found_between_its_neighbours_alone() -> None:
    text = f"user: a {placeholder(0)} user: b {placeholder(1)}"
    rendering = Rendering.of(text)
    assert rendering.lost([Trace("a"), Trace(0), Trace("b"), Trace(1)]) == []
    assert rendering.lost([Trace("b"), Trace(0), Trace("a"), Trace(1)]) == [0, 2]
    assert rendering.lost([Trace(1), Trace(0)]) == [1]
    assert Rendering.of(text + placeholder(0)).lost([Trace("a"), Trace(0)]) == [1]
    assert rendering.lost([Trace("b", is_ordered=False), Trace("a")]) == []
    assert TemplateInput({}).hide([1, 2]) == 0
