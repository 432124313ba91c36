"""Holds a conversation far past its context and counts what that costs: python -m tests.chat.measure_long [TURNS [CONTEXT]].

Asks the default model with `when_full` `auto`, or what KVCHAT_WHEN_FULL says, in idle time between any two messages. Every
tenth message tells a fact, and the fifth after it asks for that; the first gives a standing instruction. Prints a line a turn,
then the counts. Takes about half an hour for 300 turns in 2,048 tokens on two slow cores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvchat.backends.base import Done, Notice
from kvchat.backends.local import LocalBackend
from kvchat.cache.block import common_prefix
from kvchat.chat.session import Session, WhenFull
from kvchat.config import load_config
from kvchat.errors import ContextOverflowError
from tests.backends.measure_endings import QUESTIONS

INSTRUCTION = "Hello. My name is Marlow. Please call me Marlow from now on."
NAME = "Marlow"
THINGS = ("locker", "safe", "garage", "cabin", "studio", "cellar", "archive", "office", "boat", "barn")
EVERY = 10
LATER = 5


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that was told in message `number`."""

    number: int

    @property
    def place(self) -> str:
        """What it is the code of."""
        return f"{THINGS[self.number // EVERY % len(THINGS)]} {self.number // EVERY + 1}"

    @property
    def code(self) -> str:
        """Four digits."""
        return str(1000 + 37 * self.number % 9000)


@dataclass(frozen=True, slots=True)
class Row:
    """One turn. `known` are those of the `asked_for` facts, told before, whose code the prompt still has; `name` whether it
    has the instruction's name. `is_broken`: the prompt does not begin with the one before."""

    number: int
    ttft_ms: float
    prompt_tokens: int
    computed_tokens: int
    is_broken: bool
    is_refused: bool
    notices: tuple[str, ...] = ()
    num_facts: int = 0
    num_known: int = 0
    has_name: bool = False
    asked: str = ""
    is_right: bool = False


def message(number: int) -> str:
    """What is said in turn `number`, from 0."""
    if number == 0:
        return INSTRUCTION
    if number % EVERY == 1:
        return f"Remember this: the code of the {Fact(number).place} is {Fact(number).code}."
    if number % EVERY == 1 + LATER:
        return f"What is the code of the {Fact(number - LATER).place}?"
    return QUESTIONS[number % len(QUESTIONS)]


def hold(session: Session, num_turns: int) -> Iterator[Row]:
    """Say all messages in order, with idle time before each."""
    before: Sequence[int] = ()
    facts: list[Fact] = []
    for number in range(num_turns):
        session.prepare()
        notices: list[str] = []
        answer = None
        try:
            for event in session.send(message(number)):
                if isinstance(event, Notice):
                    notices.append(event.message)
                elif isinstance(event, Done):
                    answer = event.answer
        except ContextOverflowError:
            yield Row(number, 0.0, 0, 0, False, True)
            continue
        assert answer is not None
        told = "\n".join(turn.text for turn in session.history[:-2])
        yield Row(
            number,
            answer.timings.ttft_ms,
            answer.usage.prompt_tokens,
            answer.usage.prompt_tokens - answer.usage.cached_tokens,
            common_prefix(before, answer.prompt) < len(before),
            False,
            tuple(notices),
            len(facts),
            sum(fact.code in told for fact in facts),
            NAME in told,
            Fact(number - LATER).code if number % EVERY == 1 + LATER else "",
            number % EVERY == 1 + LATER and Fact(number - LATER).code in answer.text,
        )
        before = answer.prompt
        if number % EVERY == 1:
            facts.append(Fact(number))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so much of them do not pass."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report(rows: Sequence[Row], num_held: int) -> Iterator[str]:
    """What came of it, line by line."""
    asked = [row for row in rows if row.asked]
    told = [row for row in rows if row.num_facts]
    third = max(1, len(rows) // 3)
    yield f"turns {len(rows)}, in the tree {num_held}, refused {sum(row.is_refused for row in rows)}"
    epochs = [row for row in rows if any("from here on" in line for line in row.notices)]
    yield f"epochs ended {len(epochs)}, breaks of the prefix {sum(row.is_broken for row in rows)}"
    flawed = [line for row in epochs for line in row.notices if line.startswith("the summary ")]
    yield f"summaries that were none {len(flawed)}"
    for first in range(0, len(rows), third):
        part = [row.ttft_ms for row in rows[first : first + third]]
        name = f"turns {first + 1} to {first + len(part)}"
        yield f"ttft of {name}: p50 {percentile(part, 0.5):.0f} ms, p95 {percentile(part, 0.95):.0f} ms"
    ended = [row.ttft_ms for row in epochs]
    if ended:
        yield f"ttft of the first turns of epochs: p50 {percentile(ended, 0.5):.0f} ms, most {max(ended):.0f} ms"
    if told:
        share = sum(row.num_known for row in told) / sum(row.num_facts for row in told)
        yield f"facts told so far that a prompt has, on average {share:.0%}; in the last {rows[-1].num_known} of {rows[-1].num_facts}"
    yield f"prompts with the standing instruction {sum(row.has_name for row in rows[1:])} of {len(rows) - 1}"
    yield f"facts asked for {LATER} turns later and answered right {sum(row.is_right for row in asked)} of {len(asked)}"


def main(num_turns: int, context: int) -> None:
    """Hold the conversation with the default model and print what came of it."""
    flags = {"model.context": context, "sampling.temperature": 0.0, "sampling.max_tokens": 24}
    config = load_config(flags)
    with Session.from_config(LocalBackend(config), config) as session:
        if config.chat.when_full is None:
            session.when_full = WhenFull.AUTO
        rows = []
        for row in hold(session, num_turns):
            rows.append(row)
            print(
                row.number, f"{row.ttft_ms:.0f} ms", f"{row.computed_tokens}/{row.prompt_tokens}", flush=True
            )
            for line in row.notices:
                print("   ", line)
                if session.summary and session.summary.answer:
                    print("   ", repr(session.summary.answer.text))
        print(*report(rows, len(session.path)), sep="\n")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["300", "2048"][len(sys.argv) - 1 :])))
