"""A prompt that grew is the one that the whole rendering gives; where that is so by the template's syntax, only what is new is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvchat.errors import ModelUnavailableError
from kvchat.models.text.growing import GrowingPrompts
from kvchat.models.text.template import ChatTemplate, Message
from kvchat.models.text.template_language import TemplateProgram
from kvchat.models.text.template_steps import MARK
from kvchat.models.text.tokenizer import ChatTokenizer
from tests.models.chat_templates import byte_tokenizer
from tests.models.past_templates import EVERY
from tests.models.text.test_template_law import conversation, letters

KINDS = ("ids", "text", "forged", "ids with thought")
CUTS = ("chatml", "gemma", "llama3", "phi", "systemless")
"""Templates whose text is a step a message."""
EDITS = st.sampled_from(["grow", "grow", "grow", "undo", "say otherwise", "other system", "all anew"])

NOT_CUT = {
    "a state that passes change": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{% endfor %}",
    "how many there are": "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "a part of them": "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
    "a loop that may end early": "{% for m in messages %}{% if loop.index0 > 3 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "the passes that are left": "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}",
    "what the pass before was": "{% for m in messages %}{% if loop.changed(m.role) %}{{ m.role }}{% endif %}{{ m.content }}{% endfor %}",
    "a loop handed on": "{% macro f(l) %}{{ l.length }}{% endmacro %}{% for m in messages %}{{ f(loop) }}{{ m.content }}{% endfor %}",
    "a cycle": "{% set c = cycler('a', 'b') %}{% for m in messages %}{{ c.next() }}{{ m.content }}{% endfor %}",
    "two loops": "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{% endfor %}",
    "a choice of messages": "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.content }}{% endfor %}",
}


def whole(template: ChatTemplate) -> ChatTemplate:
    """The same template, which renders everything each time."""
    other = copy(template)
    other.growing = GrowingPrompts(TemplateProgram("{{ messages }}"), template._reader, template.tokenizer)
    return other


def made(source: str) -> ChatTemplate:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = ChatTokenizer(byte_tokenizer(("<s>", "</s>", "<|a|>")), names=names, control_text=source)
    return ChatTemplate(source, tokenizer)


def changed(history: list[Message], edit: str, grown: Sequence[Message], number: int) -> list[Message]:
    """The conversation after what a user does to it; all of it is `grown` where it only goes on."""
    if edit == "grow":
        return list(grown)
    if edit == "undo":
        return history[: max(2, len(history) - 4)]
    if edit == "say otherwise":
        return [*history[:-1], Message("user", f"otherwise {number}")]
    if edit == "other system":
        return [Message("system", f"rules {number}"), *history[1:]]
    return [history[0], Message("user", f"anew {number}")]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=4, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=6, max_size=14), edits=st.lists(EDITS, max_size=6))
def test_a_prompt_that_grew_is_the_whole_one(name: str, kinds: list[str], edits: list[str]) -> None:
    template, other = EVERY[name], whole(EVERY[name])
    grown = conversation(template, kinds)
    history = grown[:12]
    for number, edit in enumerate([*edits, "grow"]):
        assert template.tokens(history) == other.tokens(history)
        assert template.next_prefix(history[:-1]) == other.next_prefix(history[:-1])
        history = changed(history, edit, grown[: len(history) + 2], number)


@pytest.mark.parametrize("name", CUTS)
def test_of_a_conversation_that_goes_on_only_what_is_new_is_read(name: str) -> None:
    template = EVERY[name]
    history = conversation(template, ["ids"] * 40)
    template.tokens(history[:-40])
    before = template.growing.num_read
    for length in range(len(history) - 38, len(history) + 1, 2):
        template.tokens(history[:length])
    assert template.growing.num_read - before <= 20 * 4


def test_a_template_is_cut_by_its_syntax_alone() -> None:
    assert all(TemplateProgram(source).has_steps for source in (made_source(body) for body in BODIES))
    assert [name for name, source in NOT_CUT.items() if TemplateProgram(source).has_steps] == []


BODIES = (
    "{{ m.content }}",
    "{% if loop.first and messages[0].role != 'system' %}s{% endif %}{{ loop.index }}{{ m.content }}",
    "{{ m.content }}{% if not loop.last %}\n{% endif %}",
    "{% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}!{% endif %}{{ m.content }}",
    "{% if messages[loop.index0 + 1] %}{{ messages[loop.index0 + 1].role }}{% endif %}{{ m.content }}",
    "{% set x = x|default(0) + 1 %}{{ x }}{{ m.content }}",
    "{% for c in 'ab' %}{{ loop.index }}{{ loop.last }}{% endfor %}{{ m.content }}",
)


def made_source(body: str) -> str:
    head = "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}"
    tail = "{% if add_generation_prompt %}<|a|>assistant{% endif %}{% if messages[-1].role == 'user' %}.{% endif %}"
    return f"{head}{{% for m in messages %}}<|a|>{{{{ m.role }}}}:{body}{{% endfor %}}{tail}"


@pytest.mark.parametrize("body", BODIES)
def test_steps_from_any_message_on_are_those_of_the_whole(body: str) -> None:
    program, names = TemplateProgram(made_source(body)), {"bos_token": "<s>", "add_generation_prompt": True}
    messages = [{"role": "user" if n % 3 else "assistant", "content": f"c{n}"} for n in range(9)]
    text = program.render(messages, datetime.min, **names)
    steps = program.steps(messages, 0, datetime.min, **names)
    assert steps is not None and steps.before + "".join(steps.steps) + steps.after == text
    for first in range(9):
        rest = program.steps(messages, first, datetime.min, **names)
        assert rest is not None and rest.steps == steps.steps[first:]
        shorter = program.steps(messages[: first + 1], 0, datetime.min, **names)
        assert shorter is not None
        final = max(0, first + 1 - max(1, shorter.reach))
        assert shorter.steps[:final] == steps.steps[:final]


@pytest.mark.parametrize("body", BODIES)
def test_templates_that_look_back_or_ahead_grow_to_the_whole_prompt(body: str) -> None:
    template = made(made_source(body))
    other = whole(template)
    history = conversation(template, ["ids"] * 12)
    for length in range(1, len(history) + 1, 2):
        assert template.tokens(history[:length]) == other.tokens(history[:length])
    assert template.growing.num_read


def test_a_pass_that_looks_at_the_last_message_is_in_doubt() -> None:
    program = TemplateProgram(
        "{% for m in messages %}{{ messages[loop.index0 - 1].role }}{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert program.has_steps
    assert program.steps(messages, 0, datetime.min) is None  # of the first, the one before is the last
    assert program.steps(messages, 1, datetime.min) is not None


def test_a_message_that_is_said_twice_is_left_to_the_whole_rendering() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if loop.index0 == 9 %}{{ messages[1].content }}{% endif %}<|a|>{% endfor %}"
    template = made(source)
    history = [
        Message("assistant", "two", tokens=letters(template, "two")) if n % 2 else Message("user", f"q{n}")
        for n in range(15)
    ]
    other = whole(template)
    for length in (9, 11, 13, 15):
        assert template.tokens(history[:length]) == other.tokens(history[:length])


@pytest.mark.parametrize("depth", [50, 200, 2000])
def test_a_template_too_deep_to_be_cut_is_rendered_whole_or_refused(depth: int) -> None:
    source = f"{{% for m in messages %}}{{{{ {'(' * depth}m.content{' ~ 1)' * depth} }}}}{{% endfor %}}"
    try:
        program = TemplateProgram(source)
    except ModelUnavailableError:
        return
    assert "a1" in program.render([{"role": "user", "content": "a"}], datetime.min)


def test_signs_of_steps_in_what_others_say_are_no_steps() -> None:
    source = (
        "{{ tools }}{% for m in messages %}<|a|>{{ m.role }}:{{ m.content }}{{ m.calls or '' }}{% endfor %}"
    )
    history = [
        Message("user", f"q{n}{MARK}")
        if n % 2 == 0
        else Message("assistant", "a", extra=json.dumps({"calls": MARK}))
        for n in range(13)
    ]
    for template in (made(source), made(source).with_tools(json.dumps([MARK]))):
        assert template.tokens(history) == whole(template).tokens(history)
