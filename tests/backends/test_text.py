from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.backends.text import ReasoningSplitter, StopScanner

MARKS = ("<think>", "</think>")


def scan(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(piece) for piece in pieces)
    return shown + scanner.finish(), scanner.is_hit


@given(st.text("abX", max_size=30), st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_a_stop_string_ends_the_text_wherever_it_is_cut(text: str, sizes: list[int]) -> None:
    shown, hit = scan(["aX", "bbX"], cut(text, sizes))
    first = min((text.find(stop) for stop in ("aX", "bbX") if stop in text), default=None)
    assert (shown, hit) == ((text, False) if first is None else (text[:first], True))


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


def split(
    pieces: list[str], *, marks: tuple[str, str] | None = MARKS, is_open: bool = False
) -> tuple[str, str]:
    splitter = ReasoningSplitter(marks, is_open=is_open)
    found = [part for piece in pieces for part in splitter.feed(piece)] + splitter.finish()
    return (
        "".join(part.text for part in found if part.is_reasoning),
        "".join(part.text for part in found if not part.is_reasoning),
    )


@given(st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_reasoning_is_told_from_the_answer_wherever_the_text_is_cut(sizes: list[int]) -> None:
    reasoning, answer = split(cut("<think>\nso < I\n</think>\n\nHello <think> world", sizes))
    assert (reasoning.strip(), answer) == ("so < I", "Hello <think> world")


@pytest.mark.parametrize("text", ["plain", " plain\n\n", "<thin air>", "<", "", "a<think>b</think>c"])
def test_text_that_does_not_begin_with_the_mark_is_all_answer(text: str) -> None:
    assert split(list(text)) == ("", text)


def test_reasoning_that_the_prompt_opened_needs_no_opening_mark() -> None:
    assert split(["so I", " think</th", "ink>\nyes"], is_open=True) == ("so I think", "yes")


def test_reasoning_that_never_ends_is_no_answer() -> None:
    assert split(["<think>on and", " on"]) == ("on and on", "")


def test_without_marks_nothing_is_reasoning() -> None:
    assert split(["<think>x</think>y"], marks=None) == ("", "<think>x</think>y")


CHANNELS = ("<|c|>analysis<|m|>", "<|e|><|s|>assistant<|c|>final<|m|>")


@pytest.mark.parametrize(
    "text", ["<|c|>analysis<|m|>hm<|e|><|s|>assistant<|c|>final<|m|>yes", "<|c|>final<|m|>yes"]
)
@given(sizes=st.lists(st.integers(1, 9), min_size=30, max_size=30))
def test_an_answer_without_reasoning_may_have_a_lead_of_its_own(text: str, sizes: list[int]) -> None:
    splitter = ReasoningSplitter(CHANNELS, lead="<|c|>final<|m|>")
    found = [part for piece in cut(text, sizes) for part in splitter.feed(piece)] + splitter.finish()
    assert "".join(part.text for part in found if not part.is_reasoning) == "yes"
    assert "".join(part.text for part in found if part.is_reasoning) == ("hm" if "hm" in text else "")


def told(pieces: list[str], splitter: ReasoningSplitter) -> tuple[str, str]:
    """Reasoning and answer, what was recalled counted as reasoning."""
    reasoning, answer = "", ""
    for piece in [part for text in pieces for part in splitter.feed(text)] + splitter.finish():
        if piece.recalls:
            reasoning, answer = reasoning + answer, ""
        if piece.is_reasoning:
            reasoning += piece.text
        else:
            answer += piece.text
    return reasoning, answer


SIZES = st.lists(st.integers(1, 9), min_size=40, max_size=40)


@given(sizes=SIZES)
def test_reasoning_that_only_ends_is_recalled_wherever_the_text_is_cut(sizes: list[int]) -> None:
    text = "so < I\n</think>\n\nHello"
    assert told(cut(text, sizes), ReasoningSplitter(MARKS)) == ("so < I\n", "Hello")


@pytest.mark.parametrize("text", ["write `</think>` there", "a <think> b </think> c", "no </thin air>"])
@given(sizes=SIZES)
def test_an_answer_that_speaks_of_the_marks_stays_an_answer(text: str, sizes: list[int]) -> None:
    assert told(cut(text, sizes), ReasoningSplitter(MARKS)) == ("", text)


@pytest.mark.parametrize("thought", ["", "[T]hm[/T]", "[T]hm[/T]\n"])
@pytest.mark.parametrize("end", ["", "[/A]"])
@given(sizes=SIZES)
def test_what_frames_an_answer_is_no_part_of_it(thought: str, end: str, sizes: list[int]) -> None:
    splitter = ReasoningSplitter(("[T]", "[/T]"), lead="[A]", tail="[/A]")
    wanted = ("hm" if thought else "", "yes [or] no")
    assert told(cut(f"{thought}[A]yes [or] no{end}", sizes), splitter) == wanted


@given(sizes=SIZES)
def test_a_piece_says_where_it_ends_in_all_that_came(sizes: list[int]) -> None:
    text = "<think>\nso I\n</think>\n\nHello world"
    splitter = ReasoningSplitter(MARKS)
    found = [part for piece in cut(text, sizes) for part in splitter.feed(piece)] + splitter.finish()
    assert all(text[: part.end].endswith(part.text) for part in found)


@given(st.text("abX", max_size=30), SIZES)
def test_a_stop_string_says_how_much_came_from_it_on(text: str, sizes: list[int]) -> None:
    scanner, fed, shown = StopScanner(["aX"]), 0, ""
    for piece in cut(text, sizes):
        if not scanner.is_hit:
            shown, fed = shown + scanner.feed(piece), fed + len(piece)
    assert not scanner.is_hit or len(shown) == fed - scanner.rest


@given(
    st.text("abX", max_size=20),
    st.text("abX", max_size=20),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_a_stop_string_may_begin_in_what_was_shown_before(before: str, after: str, sizes: list[int]) -> None:
    stops = ("aX", "bbX")
    if any(stop in before for stop in stops):
        return
    scanner = StopScanner(stops, before)
    shown = "".join(scanner.feed(piece) for piece in cut(after, sizes)) + scanner.finish()
    whole = before + after
    first = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    assert before[: len(before) - scanner.retracted] + shown == whole[:first]
    assert scanner.is_hit == (first < len(whole))
