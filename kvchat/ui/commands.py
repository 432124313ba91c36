"""What a line that begins with `/` does: a table with a row a command. Knows the session, no screen."""

from __future__ import annotations

import difflib
import textwrap

from kvchat.backends.base import Phase
from kvchat.errors import UsageError
from kvchat.ui.clipboard import selection, write_new
from kvchat.ui.cost import typed_text
from kvchat.ui.desk import Desk, SlashCommand
from kvchat.ui.elsewhere import ADVICE, ALIASES, FAREWELLS, said_here
from kvchat.ui.moves import MOVES
from kvchat.ui.options_command import option_names, run_set
from kvchat.ui.render import reuse_text, stats_line, weights_text
from kvchat.ui.room import ROOM
from kvchat.ui.tables import joined

KEYS = (
    ("Enter", "send; Alt-Enter, Ctrl-J or a trailing \\ make a new line"),
    ("Ctrl-C, Esc", "stop an answer, keeping what was said; Ctrl-C clears the input, twice leaves"),
    ("Esc Esc", "go back to an earlier message"),
    ("Alt-N, Alt-P", "the next or previous answer there is to the last message"),
    ("Up, Ctrl-R", "earlier messages, one by one or searched; Up takes a queued message back"),
    (
        "Tab",
        "complete a command, its argument, or a file after an @ (a file, a folder, or *.py); open a paste",
    ),
    ("Ctrl-G", "write the message in $VISUAL or $EDITOR; Ctrl-X Ctrl-E does the same"),
    ("Ctrl-O, Ctrl-L", "show what the model thought; redraw the screen"),
    ("!COMMAND", "run a shell command; its output can go along with the next message"),
    ("Ctrl-D", "leave"),
)


def is_command(text: str) -> bool:
    """Whether a line is a command, or a farewell; `//` is a slash that is meant."""
    return (text.startswith("/") and not text.startswith("//")) or text.lower() in FAREWELLS


def find(text: str) -> tuple[SlashCommand, str]:
    """The command of a line, and its argument. Raises UsageError, with what to do instead or the nearest command."""
    said, *rest = said_here(text).split(maxsplit=1)
    name = ALIASES.get(said, said)
    for command in COMMANDS:
        if command.name == name:
            return command, rest[0].strip() if rest else ""
    if said in ADVICE:
        raise UsageError(f"no command is called {said}", ADVICE[said])
    near = difflib.get_close_matches(name, [command.name for command in COMMANDS])
    nearest = sorted(near, key=lambda other: other[:2] != name[:2])  # the first letter is seldom wrong
    remedy = f"did you mean {nearest[0]}?" if nearest else "/help lists them all"
    raise UsageError(f"no command is called {said}", f"{remedy} (// begins a message with a slash)")


def completions(text: str) -> list[str]:
    """The commands that a line may become."""
    if not is_command(text) or " " in text or "\n" in text:
        return []
    return [command.name for command in COMMANDS if command.name.startswith(text)]


def common_start(names: list[str]) -> str:
    """What all of the names begin with."""
    first, last = min(names), max(names)
    num_equal = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:num_equal]


def _help(desk: Desk, argument: str) -> str:
    rows = [(f"{command.name} {command.arguments}".strip(), command.help) for command in COMMANDS]
    width = 2 + max(len(name) for name, _ in (*rows, *KEYS))
    if desk.look.columns < 2 * width:  # too narrow for two columns
        return "\n".join(f"{name}\n  {_hung(about, 2, desk)}" for name, about in (*rows, *KEYS))
    return "\n".join(f"{name:<{width}}{_hung(about, width, desk)}" for name, about in (*rows, *KEYS))


def _hung(text: str, indent: int, desk: Desk) -> str:
    """A text whose further rows begin below its first, `indent` columns to the right."""
    return f"\n{' ' * indent}".join(textwrap.wrap(text, max(2, desk.look.columns - indent)))


def _clear(desk: Desk, argument: str) -> str:
    desk.session.clear()
    return "a new conversation begins" + ("; the system prompt stays" if desk.session.system else "")


def _system(desk: Desk, argument: str) -> str:
    if argument:
        desk.session.set_system(None if argument == "-" else argument)
        done = "removed" if argument == "-" else "replaced"
        return f"the system prompt is {done}, from the next message on"
    return desk.session.system or "there is no system prompt; set one with /system TEXT"


def _stats(desk: Desk, argument: str) -> str:
    from kvchat.ui.cache_tables import history_table, remembered_text

    totals, last = desk.session.totals, desk.session.last
    if last is None:
        return "nothing has been answered yet"
    asked = totals.cached_tokens + totals.prefilled_tokens
    usage = last.usage
    return joined(
        (
            remembered_text(usage.cached_tokens, usage.prompt_tokens, last.cache.saved_s),
            f"answers {totals.answers} · generated {totals.completion_tokens} tokens",
            f"prompts {asked} tokens · cached {totals.cached_tokens} ({100 * totals.hit_rate:.0f}%)"
            f" · prefilled {totals.prefilled_tokens}"
            + (f" · prepared {totals.idle_tokens} while idle" if totals.idle_tokens else ""),
            typed_text(totals),
            "last: " + stats_line(last, desk.session.backend.info().context),
            f"cache: {last.cache.reason}, from token {last.cache.diverged_at}",
            reuse_text(desk.session.backend.info()),
            weights_text(desk.session.backend.info()),
            history_table([each.answer for each in desk.session.path if each.answer], desk.look),
            _memory(desk),
        ),
        desk.look.columns - 1,
    )


def _memory(desk: Desk) -> str:
    """What the engine has in memory; not asked while it is busy, for that would wait."""
    from kvchat.ui.cache_tables import memory_text

    backend = desk.session.backend
    return memory_text(backend.cache(())) if backend.status().phase is Phase.READY else ""


def _cache(desk: Desk, argument: str) -> str:
    from kvchat.ui.cache_tables import cache_text, why_text

    if argument not in ("", "why"):
        raise UsageError(f"/cache {argument} is not known", "say /cache or /cache why")
    session = desk.session
    if argument:
        return why_text(session.last, desk.look) if session.last else "nothing has been answered yet"
    view = session.backend.cache(session.history, session.chosen)
    return cache_text(view, session.store.totals(), desk.look)


def _context(desk: Desk, argument: str) -> str:
    from kvchat.ui.cache_tables import context_text

    session, backend = desk.session, desk.session.backend
    view = backend.cache(session.history, session.chosen)
    return context_text(view, backend.info().context, desk.look)


def _tokens(desk: Desk, argument: str) -> str:
    context = desk.session.backend.info().context
    if argument:
        return f"{desk.session.backend.count(argument)} tokens"
    used = desk.session.last.usage.total_tokens if desk.session.last else 0
    return f"the conversation has {used} tokens of {context}"


def _copy(desk: Desk, argument: str) -> str:
    which, arrow, name = argument.partition(">")
    first, _, rest = which.strip().partition(" ")
    is_numbered = first.removeprefix("-").isdecimal()
    text = selection(
        _answer(desk, int(first) if is_numbered else -1), rest.strip() if is_numbered else which.strip()
    )
    num_lines = len(text.splitlines())
    lines = "1 line" if num_lines == 1 else f"{num_lines} lines"
    if arrow:
        return f"{lines} written to {write_new(name.strip(), text)}"
    desk.copy(text)
    return f"{lines} went to the terminal's clipboard; if it has none: /copy > FILE"


def _answer(desk: Desk, number: int) -> str:
    """The text of answer `number`, from 1; -1 is the last. Raises UsageError."""
    path = desk.session.path
    if not path or (number == -1 and path[-1].answer is None):
        raise UsageError("nothing has been answered yet", "there is nothing to copy")
    at = number - 1 if number > 0 else len(path) + number
    answer = path[at].answer if 0 <= at < len(path) and number else None
    if answer is None:
        raise UsageError(f"there is no answer {number}", f"give a number from 1 to {len(path)}")
    return answer.text


def _exit(desk: Desk, argument: str) -> str:
    desk.leave()
    return ""


COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("/help", "", "this list", _help, anytime=True),
    SlashCommand("/clear", "", "begin a new conversation", _clear),
    *MOVES,
    *ROOM,
    SlashCommand("/system", "[TEXT|-]", "show, replace or remove the system prompt", _system),
    SlashCommand(
        "/set",
        "[KEY [VALUE]] [--save]",
        "show or change how answers are sampled; --save keeps it for new conversations",
        run_set,
        choices=option_names,
    ),
    SlashCommand("/stats", "", "what the cache saved", _stats, anytime=True),
    SlashCommand(
        "/cache",
        "[why]",
        "what is cached of the conversation; why the rest was computed",
        _cache,
        choices=lambda desk: ("why",),
    ),
    SlashCommand("/context", "", "what takes how many tokens of the context", _context),
    SlashCommand("/tokens", "[TEXT]", "count the tokens of a text, or of the conversation", _tokens),
    SlashCommand(
        "/copy",
        "[N] [code [N]] [> FILE]",
        "copy the last answer, or answer N, or a block of code in it",
        _copy,
        anytime=True,
        choices=lambda desk: ("code",),
    ),
    SlashCommand("/exit", "", "leave", _exit, anytime=True),
)
