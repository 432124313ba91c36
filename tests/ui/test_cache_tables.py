"""The cache's tables at any width, with and without colours."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kvchat.backends.base import Answer, CacheReport, FinishReason, Role, Timings, Usage
from kvchat.backends.inspection import CacheRow, CacheTotals, CacheView
from kvchat.cache.stats import TierUse
from kvchat.ui.cache_tables import (
    cache_text,
    context_text,
    history_table,
    map_table,
    memory_text,
    segments,
    why_text,
)
from kvchat.ui.tables import Look

MIB = 2**20
ROWS = (
    CacheRow(
        Role.SYSTEM, "Be brief.\nAnd \x1b[31mkind.", 1000, 1000, {"ram": 992, "disk": 992}, 23 * MIB, 1.3
    ),
    CacheRow(Role.USER, "what is a cache?", 20, 20, {"ram": 16, "disk": 0}, MIB, 0.02),
    CacheRow(Role.ASSISTANT, "a " * 30, 400, 0, {"ram": 100, "disk": 300}, 9 * MIB, 0.4),
    CacheRow(Role.USER, "日本語のとても長いメッセージ", 30, 0, {"ram": 0, "disk": 0}, MIB, 0.0),
)
TURN = CacheTotals(
    asked_tokens=1450,
    live_tokens=1020,
    tier_tokens={"disk": 300},
    stored_bytes=9 * MIB,
    saved_s=1.7,
    load_s=0.2,
)
TIERS = (TierUse("ram", 30 * MIB, 300 * MIB), TierUse("disk", 2**30, 4 * 2**30))
VIEW = CacheView(
    "rw", "raw", 16, TIERS, 33 * MIB, ROWS, 1450, 1320, 0.5, TURN, TURN, 257 * MIB, 900 * MIB
)  # fmt: skip
ANSWER = Answer(
    "x", "", (), (), "t", FinishReason.STOP, Usage(1910, 212, 1842), Timings(0, 9, 1842, 68, 210, 212, 7000, 240),
    CacheReport(1800, {"disk": 42}, 1842, "edited system prompt", "you are\nkind| and brief", "you are\nkind| and \x1b]0;x\x07wordy", 1.9),
)  # fmt: skip


def bare(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")


def cells(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


LOOKS = [Look(columns, color) for columns in (40, 60, 80, 120, 200) for color in (False, True)]


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_wider_than_the_terminal(look: Look) -> None:
    shown = [
        cache_text(VIEW, TURN, look),
        context_text(VIEW, 8192, look),
        history_table([ANSWER] * 30, look),
        why_text(
            replace(ANSWER, cache=replace(ANSWER.cache, was="日本語のとても長い" * 9 + "|" + "x" * 99)), look
        ),
    ]
    for text in shown:
        assert max(cells(line) for line in bare(text)) <= look.columns
        assert ("\x1b[" in text) == (look.color and text is not shown[3])
        assert "\x1b[31mkind" not in text
        assert "\x1b]0" not in text


def test_the_map_has_a_row_a_message_with_all_its_figures_at_40_columns() -> None:
    lines = bare(cache_text(VIEW, TURN, Look(40)))
    row = next(line for line in lines if line.startswith("answer"))
    assert re.fullmatch(r"answer +400 ▓+▒+░+ +9\.00 MiB 0\.40 s", row)
    assert re.fullmatch(
        r"system +1000 █+ +23\.0 MiB 1\.30 s", next(line for line in lines if line.startswith("system"))
    )


def test_the_middle_of_a_long_conversation_is_one_row_and_no_token_is_left_out() -> None:
    rows = [ROWS[0], *ROWS[1:] * 300]
    lines = bare(map_table(rows, ["ram", "disk"], Look(60)))
    assert len(lines) == 42
    assert lines[0].split() == ["message", "tokens", "held", "size", "saves"]
    assert lines[1].startswith("system")
    assert lines[2].split()[:2] == ["861", "more"]
    shown = [int(match[1]) for line in lines if (match := re.match(r"(?:\w+|\d+ more) +(\d+) ", line))]
    assert sum(shown) == sum(row.tokens for row in rows)


def test_a_token_counts_in_the_fastest_tier_that_holds_it() -> None:
    assert [segments(row, ["ram", "disk"]) for row in ROWS] == [
        (1000, 0, 0, 0),
        (20, 0, 0, 0),
        (0, 100, 200, 100),
        (0, 0, 0, 30),
    ]


def test_plain_has_words_for_bars() -> None:
    text = cache_text(VIEW, TURN, Look(40, plain=True))
    assert "answer, 400 tokens, RAM 100, disk 200, cold 100, 9.00 MiB, saves 0.40 s" in text
    for shown in (
        text,
        context_text(VIEW, 8192, Look(40, plain=True)),
        history_table([ANSWER], Look(40, plain=True)),
    ):
        assert not set(shown) & set("█▓▒░·\x1b")


def test_totals_stand_for_turn_process_and_all_time() -> None:
    lines = bare(cache_text(VIEW, replace(TURN, asked_tokens=9000), Look(60)))
    assert any(line.split() == ["turn", "process", "all", "time"] for line in lines)
    assert any(line.split() == ["asked", "1450", "1450", "9000"] for line in lines)
    assert any(line.split() == ["saved", "1.50", "s", "1.50", "s", "1.50", "s"] for line in lines)


def test_why_shows_both_texts_the_cause_and_the_cost() -> None:
    sentence, *lines = why_text(ANSWER, Look(120)).split("\n")
    assert sentence == (
        "Of the last 1910 tokens 1842 were remembered and not computed again; that saved 1.90 s."
    )
    assert lines[0] == "from token 1842 of 1910 on: edited system prompt"
    assert lines[1] == "was  you are⏎kind│ and brief"
    assert lines[2].startswith("now  you are⏎kind│ and ␛]0;x")
    assert lines[3] == "computed 68 tokens in 0.21 s"
    assert lines[4] == "reused 1842 (live 1800, disk 42), which saved 1.90 s"


def test_one_token_is_not_tokens() -> None:
    retried = replace(ANSWER, timings=replace(ANSWER.timings, prompt_n=1))
    assert "\ncomputed 1 token in " in why_text(retried, Look(120))


def test_the_context_is_shared_out_to_the_last_token() -> None:
    lines = bare(context_text(VIEW, 2000, Look(80)))
    assert lines[0].startswith("context 1450 of 2000 tokens")
    shares = [int(match[1]) for line in lines[1:5] if (match := re.search(r"(\d+) tokens", line))]
    assert sum(shares) == 2000
    assert "system" in lines[lines.index("largest:") + 1]


def test_an_empty_conversation_and_a_cache_that_is_off_have_tables_too() -> None:
    empty = replace(VIEW, mode="off", rows=(), tiers=())
    assert "the cache is off" in cache_text(empty, None, Look(40))
    assert "context 0 of 100 tokens" in context_text(empty, 100, Look(40))
    assert history_table([], Look(40)) == ""


def test_memory_leaves_out_what_is_not_known() -> None:
    assert memory_text(VIEW) == "memory: weights 257 MiB, arena 33.0 MiB, cache 30.0 MiB, process 900 MiB"
    assert "process" not in memory_text(replace(VIEW, process_bytes=0))
