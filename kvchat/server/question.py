"""One request that is to be answered, whatever its protocol, and what its answer means for the next. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvchat.backends.base import Answer, Encoded, Options, Role, Turn
from kvchat.server.calls import CallWatch
from kvchat.server.memory import Beginnings, Kept, Memory
from kvchat.server.said import Call, Said, keys_of, turns_of, with_one_system


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation (`said`) or a bare prompt (`bare`), as the `turns` that the backend is asked.

    `tools` are the names of those that may be called, `client` is who asks. Of the messages, `num_known` from the first on
    were asked before.
    """

    turns: tuple[Turn, ...]
    options: Options
    client: str
    said: tuple[Said, ...] = ()
    keys: tuple[bytes, ...] = ()
    bare: str | tuple[int, ...] = ""
    tools: frozenset[str] = field(default_factory=frozenset)
    num_known: int = 0

    @property
    def is_going_on(self) -> bool:
        """Whether the answer goes on with the conversation's last message."""
        return self.turns[-1].role is Role.ASSISTANT


def question_of(
    said: Sequence[Said],
    options: Options,
    client: str,
    memory: Memory,
    *,
    tools: str = "",
    tool_names: frozenset[str] = frozenset(),
    takes_tools: bool = False,
) -> Question:
    """The question that a conversation is."""
    said = with_one_system(said)
    keys = tuple(keys_of(said))
    turns = turns_of(said, memory, tools=tools, takes_tools=takes_tools)
    return Question(turns, options, client, said, keys, tools=tool_names, num_known=memory.num_asked(keys))


def bare_question(
    prompt: str | Sequence[int], options: Options, client: str, beginnings: Beginnings
) -> Question:
    """The question that a bare prompt is: what earlier answers generated of it goes in as such."""
    prompt = prompt if isinstance(prompt, str) else tuple(prompt)
    known, turns = beginnings.longest(prompt)
    rest = prompt[known:]
    if rest:
        more = Turn(Role.PROMPT, rest) if isinstance(rest, str) else Turn(Role.PROMPT, "", tokens=rest)
        turns = (*turns, more)
    return Question(turns, options, client, bare=prompt)


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says to a client: its text without calls, and these."""

    text: str
    calls: tuple[Call, ...] = ()


def reply_of(question: Question, answer: Answer) -> Reply:
    """An answer's text and its calls, as they are told apart while it streams."""
    if not question.tools:
        return Reply(answer.text)
    watch = CallWatch(question.tools)
    text = watch.feed(answer.text)
    rest, calls = watch.finish()
    return Reply(text + rest, calls)


def remember(question: Question, answer: Answer, memory: Memory, beginnings: Beginnings) -> None:
    """Keep an answer's ids, to be found by what the client sends back."""
    if question.bare:
        _remember_bare(question, answer, beginnings)
        return
    turn, said = answer.turn(), list(question.said)
    reply = reply_of(question, answer)
    if question.is_going_on:
        joined = _joined(question.turns[-1], answer)
        before = said.pop()
        turn, reply = (
            joined,
            replace(reply, text=before.text[: len(before.text) - answer.retracted] + reply.text),
        )
    keys = keys_of([*said, Said(Role.ASSISTANT, reply.text, calls=reply.calls)])
    memory.note(keys)
    if turn.tokens:
        memory.keep(keys[-1], Kept.of(turn))


def _joined(begun: Turn, answer: Answer) -> Turn:
    """The whole of an answer that was gone on with; without ids where those of its beginning are not known."""
    tokens = begun.tokens or _encoded(begun.text, answer.encoded)
    text = begun.text[: len(begun.text) - answer.retracted] + answer.text
    ids = (*tokens, *answer.completion) if tokens and not answer.retracted else None
    return Turn(Role.ASSISTANT, text, begun.reasoning + answer.reasoning, ids, answer.tokenizer)


def _encoded(text: str, encoded: Sequence[Encoded]) -> tuple[int, ...]:
    return next((one.tokens for one in encoded if one.text == text), ())


def _remember_bare(question: Question, answer: Answer, beginnings: Beginnings) -> None:
    if not answer.completion:
        return
    said = Turn(Role.ASSISTANT, answer.text, tokens=answer.completion, tokenizer=answer.tokenizer)
    turns = (*question.turns, said)
    if isinstance(question.bare, str):
        beginnings.keep(question.bare + answer.text, turns)
    else:
        beginnings.keep((*question.bare, *answer.completion), turns)
