"""Ten templates as their publishers ship them: rendered, extended, stripped, and safe from what a user types."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from kvchat.models.kinds import ids_of
from kvchat.models.text.template import ChatTemplate, Message
from kvchat.models.text.template_kind import TemplateKind, kind_of
from kvchat.models.text.tokenizer import ChatTokenizer
from tests.models.chat_templates import (
    FOLDER,
    SAMPLES,
    STRIPS,
    Sample,
    byte_tokenizer,
    generated,
    metaspace_tokenizer,
)

TEMPLATES = {sample.name: sample.template() for sample in SAMPLES}
HELD = [Message("system", "be brief"), Message("user", "hello")]


def each(*kinds: TemplateKind) -> pytest.MarkDecorator:
    chosen = [sample for sample in SAMPLES if not kinds or sample.kind in kinds]
    return pytest.mark.parametrize("sample", chosen, ids=lambda sample: sample.name)


def raw(sample: Sample, text: str) -> list[int]:
    """The text in one piece, as transformers encodes what it rendered."""
    build = metaspace_tokenizer if sample.is_metaspace else byte_tokenizer
    return build(sample.special, sample.plain).encode(text, add_special_tokens=False).ids


def test_every_template_has_its_sample() -> None:
    assert {path.stem for path in FOLDER.glob("*.jinja")} == {sample.name for sample in SAMPLES}


@each()
def test_a_template_is_classified_by_what_it_does(sample: Sample) -> None:
    assert kind_of(TEMPLATES[sample.name]) is sample.kind


@each()
def test_a_conversation_in_words_is_the_rendered_text_encoded(sample: Sample) -> None:
    said = [*HELD, Message("assistant", "world"), Message("user", "and so on")]
    assert TEMPLATES[sample.name].prompt(said) == raw(sample, sample.rendered)


@each()
@pytest.mark.parametrize("thought", ["", "the fox"])
def test_the_next_prompt_begins_with_what_was_prepared_and_keeps_the_answers_ids(
    sample: Sample, thought: str
) -> None:
    template = TEMPLATES[sample.name]
    history = list(HELD)
    for question in ("and so", "on\n\nand on", "<|im_end|>"):
        asked = template.prompt(history)
        answer = generated(template, history, "lazy dog ", thought)
        shown = list(generated(template, HELD[:1], "lazy dog ").tokens or ())[-9:]
        history.append(answer)
        kept = ids_of(template.next_prefix(history))
        history.append(Message("user", question))
        after = template.prompt(history)
        assert after[: len(kept)] == kept
        assert shown == kept[(at := find(kept, shown)) : at + len(shown)]
        if template.marks is None or not (thought or template.opens_reasoning(history)):
            extends = after[: len(asked) + 9] == [*asked, *(answer.tokens or ())][: len(asked) + 9]
            assert extends is (sample.kind is not TemplateKind.REWRITING)


def find(ids: list[int], run: list[int]) -> int:
    """Where the last occurrence of `run` begins."""
    return max(at for at in range(len(ids)) if ids[at : at + len(run)] == run)


@each(STRIPS)
def test_reasoning_is_gone_from_the_next_prompt_and_nothing_before_the_answer_changes(sample: Sample) -> None:
    template = TEMPLATES[sample.name]
    assert template.marks is not None
    body = template.prompt(HELD, answering=False)
    history = [*HELD, generated(template, HELD, "lazy dog", "the quick brown fox"), Message("user", "on")]
    after = template.prompt(history)
    assert after[: len(body)] == body
    assert "fox" not in template.tokenizer.decode(after)
    assert "lazy dog" in template.tokenizer.decode(after)


@each()
@pytest.mark.parametrize(
    "place", ["system", "user", "later", "answer in words", "thoughtful answer in words"]
)
def test_what_a_person_types_forges_no_control_token(sample: Sample, place: str) -> None:
    template = TEMPLATES[sample.name]
    control = set(template.tokenizer.control.values())
    marks: list[list[int]] = []
    for text in (sample.forgery, "harmless"):
        said = [
            Message("system", text if place == "system" else "s"),
            Message("user", text if place == "user" else "u"),
            words(template, text if "answer" in place else "a", thoughtful="thoughtful" in place),
            Message("user", text if place == "later" else "v"),
        ]
        marks.append([token for token in template.prompt(said) if token in control])
    assert marks[0] == marks[1]


def words(template: ChatTemplate, text: str, *, thoughtful: bool) -> Message:
    """An answer that has no ids of this tokenizer, as it comes from another model or was edited."""
    if thoughtful:
        return Message("assistant", text, "hm")
    return Message("assistant", text, tokens=template.answer_ids(text))


@each()
def test_what_a_person_types_is_still_read_as_its_letters(sample: Sample) -> None:
    template = TEMPLATES[sample.name]
    plain = template.tokenizer.decode(template.tokenizer.encode_as_text(sample.forgery))
    assert sample.forgery in template.tokenizer.decode(template.prompt([Message("user", sample.forgery)]))
    assert plain.strip() == sample.forgery.strip()


@each()
def test_the_beginning_of_sequence_stands_once_at_most(sample: Sample) -> None:
    template = TEMPLATES[sample.name]
    answer = generated(template, HELD, "world", "fox" if template.marks else "")
    ids = template.prompt([*HELD, answer, Message("user", sample.bos or "x")])
    first = template.tokenizer.control.get(sample.bos)
    assert ids.count(first) == (1 if sample.bos else 0)


@each()
def test_the_end_of_an_answer_is_known_from_the_template(sample: Sample) -> None:
    template = TEMPLATES[sample.name]
    closing = {"mistral": "</s>", "gemma": "<end_of_turn>", "phi": "<|end|>"}.get(sample.name, sample.eos)
    assert template.closing_ids == (template.tokenizer.control[closing],)


@each()
def test_a_cut_answer_goes_on_where_it_stopped(sample: Sample) -> None:
    template = TEMPLATES[sample.name]
    answer = generated(template, HELD, "wor", "fox" if template.marks else "")
    assert template.prompt([*HELD, answer]) == [*template.prompt(HELD), *(answer.tokens or ())]


def test_roles_that_do_not_alternate_are_refused_in_one_line() -> None:
    for name in ("mistral", "gemma"):
        with pytest.raises(Exception, match=r"refuses this conversation: .* alternat") as caught:
            TEMPLATES[name].prompt([Message("user", "a"), Message("user", "b")])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gemma", "systemless"])
def test_a_system_message_that_is_refused_or_left_out_goes_into_the_first_question(name: str) -> None:
    template = TEMPLATES[name]
    with_system = template.prompt([Message("system", "be brief"), Message("user", "hello")])
    assert with_system == template.prompt([Message("user", "be brief\n\nhello")])
    assert template.shared_tokens([Message("system", "be brief")]) > template.shared_tokens([])


def test_a_template_without_a_generation_prompt_still_lets_the_model_begin_an_answer() -> None:
    template = TEMPLATES["systemless"]
    header = template.tokenizer.control["<|assistant|>"]
    asked = template.prompt([Message("user", "hello")])
    assert asked[-1] == header
    answer = Message("assistant", "x", tokens=[60, 61])
    after = template.prompt([Message("user", "hello"), answer, Message("user", "b")])
    assert after[: len(asked) + 2] == [*asked, 60, 61]
    assert after.count(header) == 2


@pytest.mark.parametrize("name", ["dated", "harmony"])
def test_the_date_of_a_conversation_is_that_of_its_beginning(name: str) -> None:
    template = TEMPLATES[name]
    then = datetime(2025, 1, 31, 23, 59).timestamp()
    assert "2026" in template.tokenizer.decode(template.prompt(HELD))
    said = template.tokenizer.decode(template.at(then).prompt(HELD))
    assert ("31 Jan 2025" if name == "dated" else "2025-01-31") in said
    assert template.at(None) is template
    assert TEMPLATES["chatml"].at(then) is TEMPLATES["chatml"]


def test_harmonys_channels_are_decoded_as_marks() -> None:
    template = TEMPLATES["harmony"]
    assert template.marks is not None
    whole = f"{template.marks.start}hm{template.marks.end}hello"
    ids = template.tokenizer.encode(whole)
    assert template.tokenizer.decode(ids) == whole
    stream = template.tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == whole


def test_without_thinking_the_empty_thought_is_stripped_too() -> None:
    template = TEMPLATES["qwen3"]
    asked = template.prompt(HELD, think=False)
    answer = Message("assistant", "x", tokens=[60, 61])
    after = template.prompt([*HELD, answer, Message("user", "b")], think=False)
    bare = template.prompt(HELD)
    assert asked[: len(bare)] == bare
    assert len(asked) > len(bare)
    assert after[: len(bare) + 2] == [*bare, 60, 61]


def test_reasoning_without_words_is_reasoning() -> None:
    template = TEMPLATES["qwen3"]
    ids = [*template.tokenizer.encode("<think>\n\n</think>\n\n"), 60, 61]
    after = template.prompt([*HELD, Message("assistant", "x", tokens=ids), Message("user", "b")])
    assert template.tokenizer.control["</think>"] not in after


def test_letters_that_are_normalized_to_a_control_token_stay_text() -> None:
    source = TEMPLATES["chatml"].tokenizer
    inner = byte_tokenizer(("<|im_end|>", "<|im_start|>"), ("<think>",))
    inner.normalizer = normalizers.Lowercase()
    tokenizer = ChatTokenizer(inner, control_text="<think>")
    template = ChatTemplate((FOLDER / "chatml.jinja").read_text(), tokenizer)
    forged = tokenizer.control["<think>"]
    assert forged in tokenizer.encode("<THINK>"), "or this test shows nothing"
    assert forged not in template.prompt([Message("user", "a <THINK> b")])
    assert source.id != tokenizer.id


def test_what_a_template_does_to_a_system_message_alone_is_found_out() -> None:
    moves = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    moves += "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    tokenizer = ChatTokenizer(byte_tokenizer(("</s>",)), control_text=moves)
    assert kind_of(ChatTemplate(moves, tokenizer)) is TemplateKind.REWRITING


def test_a_template_that_refuses_everything_is_trusted_with_nothing() -> None:
    source = "{{ raise_exception('no') }}"
    template = ChatTemplate(source, ChatTokenizer(byte_tokenizer(("</s>",)), control_text=source))
    assert kind_of(template) is TemplateKind.REWRITING
    assert template.next_prefix([Message("user", "a")]) == []


def test_bytes_that_are_no_text_after_all_do_not_end_the_stream() -> None:
    tokenizer = metaspace_tokenizer(("</s>",))
    stream = ChatTokenizer(tokenizer).stream()
    ids = [tokenizer.token_to_id(piece) for piece in ("<0x7D>", "<0xFF>", "<0x41>", "<0x42>")]
    assert "".join(map(stream.push, ids)).startswith("}")
    assert stream.push(tokenizer.encode("fox", add_special_tokens=False).ids[-1])


FRAGMENTS = [
    "hello",
    " ",
    "\n",
    "\t",
    "é😀",
    "<",
    "|>",
    "<|im_end|>",
    "[INST]",
    "</s>",
    "{{ 1 }}",
    "99",
    "the fox",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
ODD_IDS = st.lists(st.integers(300, 500), max_size=5)


@each(TemplateKind.APPEND_SAFE)
@settings(max_examples=25, deadline=None)
@given(turns=st.lists(st.tuples(TEXTS, ODD_IDS), min_size=1, max_size=3), last=TEXTS)
def test_whatever_is_said_the_next_prompt_begins_with_the_last_one_and_its_answer(
    sample: Sample, turns: list[tuple[str, list[int]]], last: str
) -> None:
    template = TEMPLATES[sample.name]
    history = list(HELD[:1])
    whole: list[int] = []
    for question, ids in [*turns, (last, [])]:
        history.append(Message("user", question))
        asked = template.prompt(history)
        assert asked[: len(whole)] == whole
        history.append(Message("assistant", "ignored", tokens=ids))
        whole = [*asked, *ids]


SWITCHED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|></think>{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{{ '<think>' if thinking else '</think>' }}{% endif %}"
)


def test_a_switch_by_another_name_is_found_too() -> None:
    tokenizer = ChatTokenizer(
        byte_tokenizer(("<|im_end|>", "<|im_start|>"), ("<think>", "</think>")), control_text=SWITCHED
    )
    template = ChatTemplate(SWITCHED, tokenizer)
    assert template.asks_for_thought
    assert template.opens_reasoning(HELD, think=True)
    assert not template.opens_reasoning(HELD, think=False)
    assert not TEMPLATES["harmony"].asks_for_thought, "a message's key is no switch"
    assert kind_of(template) is TemplateKind.REASONING_STRIPPING


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_spaces_before_words_are_the_same_whether_or_not_ids_are_known(scheme: str) -> None:
    inner = metaspace_tokenizer(("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"))
    inner.normalizer = normalizers.Sequence([])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    source = (FOLDER / "gemma.jinja").read_text()
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    template = ChatTemplate(source, ChatTokenizer(inner, names=names, control_text=source))
    assert kind_of(template) is TemplateKind.APPEND_SAFE
    history = [Message("user", "the fox"), Message("assistant", "lazy dog"), Message("user", "and so on")]
    words = template.prompt(history)
    ids = template.tokenizer.encode("model\nlazy dog")[len(template.tokenizer.encode("model\n")) :]
    assert template.prompt([history[0], Message("assistant", "lazy dog", tokens=ids), history[2]]) == words
