"""What reaches the terminal is harmless, and the line after an answer has its exact form."""

from dataclasses import replace

import pytest

from kvchat.backends.base import Answer, CacheReport, FinishReason, Phase, Status, Timings, Usage
from kvchat.ui.render import phase_text, sanitize, stats_line


def answer(*, ram: int = 0, disk: int = 0, reason: FinishReason = FinishReason.STOP) -> Answer:
    return Answer(
        "text",
        "",
        (),
        (),
        "words",
        reason,
        Usage(1910, 212, 1842),
        Timings(0.0, 0.0, 1842, 68, 210.0, 212, 212 / 31.4 * 1e3, 240.0),
        CacheReport(1842 - ram - disk, {"ram": ram, "disk": disk}, 1842, "new text"),
    )


def test_the_line_after_an_answer_has_exactly_this_form() -> None:
    assert stats_line(answer(), 8192) == (
        "cached 1842/1910 (96%) · prefill 68 in 0.21s · ttft 0.24s · 212 tok 31.4/s · ctx 2122/8192"
    )


@pytest.mark.parametrize(
    ("ram", "disk", "tiers"), [(0, 100, ", disk"), (100, 0, ", RAM"), (100, 100, ", RAM+disk")]
)
def test_the_line_names_the_tier_that_served(ram: int, disk: int, tiers: str) -> None:
    assert f"cached 1842/1910 (96%{tiers}) ·" in stats_line(answer(ram=ram, disk=disk), 8192)


def test_the_line_says_how_many_guesses_came_true() -> None:
    guessed = replace(answer(), timings=replace(answer().timings, draft_n=40, draft_n_accepted=31))
    assert "212 tok 31.4/s (31 guessed) ·" in stats_line(guessed, 8192)


def test_a_cancelled_answer_says_stopped() -> None:
    assert stats_line(answer(reason=FinishReason.CANCELLED), 8192).endswith("ctx 2122/8192 · stopped")


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("a\x9b31mb", "a\ufffd31mb"),
        ("one\r\ntwo", "one\ntwo"),
        ("\u202egnp.exe", "gnp.exe"),
        ("\u2066x\u2069", "x"),
        ("\x7f\x00", "␡␀"),
        ("\ud800", "\ufffd"),
        ("tab\there\n", "tab\there\n"),
        ("日本 👩‍👩‍👧 é שלום", "日本 👩‍👩‍👧 é שלום"),
    ],
)
def test_control_characters_are_shown_not_obeyed(hostile: str, shown: str) -> None:
    assert sanitize(hostile) == shown


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status(Phase.LOADING, "", 43, 100), "loading 43%"),
        (Status(Phase.LOADING, "downloading", 43, 100), "downloading 43%"),
        (Status(Phase.LOADING, "warming up"), "warming up"),
        (Status(Phase.PREFILLING, "", 512, 1800), "prefill 512/1800"),
        (Status(Phase.READY), "ready"),
    ],
)
def test_the_phase_is_said_in_few_words(status: Status, words: str) -> None:
    assert phase_text(status) == words
