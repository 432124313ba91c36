"""What keys do to the input, the queue and the conversation. Lives in the event loop's thread; draws nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from kvchat.errors import KvchatError
from kvchat.ui import commands
from kvchat.ui.chooser import Chooser
from kvchat.ui.clean import sanitize
from kvchat.ui.completion import completion
from kvchat.ui.desk import Choice
from kvchat.ui.editor import edited
from kvchat.ui.enclosures import Enclosures
from kvchat.ui.entry import MAX_CHARACTERS
from kvchat.ui.face import Face
from kvchat.ui.menu import menu_rows
from kvchat.ui.pastes import Pastes
from kvchat.ui.screen import Screen
from kvchat.ui.shell import Output, ShellCommand, is_shell_command
from kvchat.ui.turns import Turns
from kvchat.ui.weighing import Weighing

_HINT_S = 2.0
_PRINTED = 20


class Keyboard:
    """The verbs of all keys."""

    def __init__(self, face: Face, screen: Screen, turns: Turns) -> None:
        self._face = face
        self._screen = screen
        self._turns = turns
        self._hint = ("", 0.0)
        self.chooser = Chooser(face.show_error)
        self.enclosures = Enclosures()
        self._pastes = Pastes()
        self._weighing = Weighing(face.session, turns, face.show_error)
        self._shell: ShellCommand | None = None
        self._put = ""  # what stands in the input since it was put there, and not typed

    # What stands around the input

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being made."""
        return self._turns.running is not None

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for y or n."""
        return self.enclosures.is_asking

    @property
    def hint(self) -> str:
        """What the toolbar says for a moment."""
        text, until = self._hint
        return text if until > time.monotonic() else ""

    def message(self) -> str:
        """What Enter would send to the model now; empty for a command, and while a list or a question is shown."""
        shown = self._screen.buffer.text.strip()
        is_busy = self.chooser.is_open or self.is_asking or self._screen.is_lent
        if is_busy or not shown or is_shell_command(shown) or commands.is_command(shown):
            return ""
        return self.enclosures.beside(self._pastes.message(shown))

    def rows(self, columns: int) -> list[str]:
        """The list, the question, or what goes along with the next message and the menu of commands."""
        if self.chooser.is_open:
            return self.chooser.rows(columns)
        rows = self.enclosures.rows(columns) + self._weighing.rows(self._screen.buffer.text, columns)
        return rows if self.is_asking else rows + menu_rows(self._screen.buffer.text, columns)

    def show_hint(self, text: str) -> None:
        """Say something in the toolbar for a moment."""
        self._hint = (text, time.monotonic() + _HINT_S)
        asyncio.get_running_loop().call_later(_HINT_S + 0.01, self._screen.app.invalidate)

    def put(self, text: str) -> None:
        """Make this the input."""
        self._screen.buffer.text = self._put = text
        self._screen.buffer.cursor_position = len(text)

    def put_back(self, text: str) -> None:
        """Give back to the input what was not sent, ahead of what was typed since."""
        typed = self._screen.buffer.text
        self.put("\n".join(part for part in (self._pastes.folded(text), typed) if part))

    # Sending

    def submit(self) -> None:
        """Send the input, unless it ends in a backslash: that is a new line."""
        buffer = self._screen.buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
            return
        shown = buffer.text.encode("utf-8", "replace").decode().strip()
        text = self._pastes.opened(shown).strip()
        if not text:
            return
        if len(text) > MAX_CHARACTERS:
            problem = f"{len(text)} characters are too many for one message"
            self._face.show_error(KvchatError(problem, "shorten it"))
            return
        is_other = is_shell_command(shown) or commands.is_command(shown)
        if not is_other and self._weighing.holds(text):
            return
        buffer.text = text
        buffer.reset(append_to_history=True)
        if is_shell_command(shown):
            self._run(text)
        elif commands.is_command(shown):
            self._submit_command(text)
        else:
            self._turns.add(self.enclosures.with_message(self._pastes.message(shown), shown))

    def _submit_command(self, text: str) -> None:
        try:
            command, _ = commands.find(text)
        except KvchatError as error:
            self._face.on_result(text, "", error)
            return
        (self._turns.run_now if command.anytime else self._turns.add)(text)

    def _run(self, text: str) -> None:
        """A shell command: one at a time, beside whatever goes on."""
        self._face.echo(text)
        if self._shell is not None:
            self._face.show_error(KvchatError("another command is running", "Ctrl-C ends it"))
            return
        self._shell = ShellCommand(text[1:])
        self._turns.start(lambda shell: self._turns.hand(self._on_output, shell.output()), self._shell)

    def _on_output(self, output: Output) -> None:
        self._shell = None
        self._face.show(output.text or "no output")
        if output.code:
            self._face.show(f"exit code {output.code}" if output.code > 0 else "the command was stopped")
        is_typing = bool(self._screen.buffer.text)  # a question would take the next key
        self.enclosures.ask(output if output.text and not is_typing else None)
        self._screen.app.invalidate()

    def reply(self, is_yes: bool) -> None:
        """Whether a command's output goes along with the next message."""
        self.enclosures.reply(is_yes)

    # Stopping and leaving

    def interrupt(self) -> None:
        """Ctrl-C: end the shell command, or the answer, or take back what waits, or clear, or leave the second time."""
        buffer = self._screen.buffer
        if self._screen.is_lent:
            return
        if self._shell is not None:
            self._shell.end()
        elif self.is_answering:
            self.stop()
        elif self._face.stop_loading():
            self.show_hint("loading was cancelled")
        elif self._turns.waiting:
            self.put_back(self._turns.take_back())
        elif buffer.text or self.enclosures:
            self.enclosures.clear()
            buffer.reset()
        elif self.hint:
            self._face.break_off()
        else:
            self.show_hint("Ctrl-C again leaves")

    def stop(self) -> None:
        """Stop the answer; what was said stays."""
        self._turns.stop()

    def end_of_input(self) -> None:
        """Leave if the input is empty."""
        if self._screen.buffer.text:
            self._screen.buffer.delete()
        else:
            self._face.leave()

    def suspend(self) -> None:
        """Give the terminal back to the shell."""
        self._screen.suspend()

    # Finding and changing text

    def recall(self) -> None:
        """The message that waits last if there is one, else the line above, else an earlier message."""
        if self._turns.waiting and not self._screen.buffer.text:
            self.put(self._pastes.folded(self._turns.waiting.pop()))
        else:
            self._screen.buffer.auto_up()

    def search(self) -> None:
        """Search earlier messages as they are typed."""
        self._screen.search()

    def complete(self) -> None:
        """Complete as far as it is clear, and name what it may become; open a paste, or show what is attached."""
        buffer = self._screen.buffer
        before = buffer.document.text_before_cursor
        if mark := self._pastes.mark_before(before):
            buffer.delete_before_cursor(len(mark))
            buffer.insert_text(self._pastes.opened(mark))
            return
        if not buffer.text and (attached := self.enclosures.last):
            self._face.show(attached.message)
            return
        found = completion(before, self._face)
        if len(found.certain) > len(before) - found.start:
            buffer.delete_before_cursor(len(before) - found.start)
            buffer.insert_text(found.certain)
        if len(found.names) > 1:
            self.show_hint("  ".join(found.names))

    def paste(self, text: str) -> None:
        """Take what was pasted into the input, in one mark if it is long."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        taken = self._pastes.taken(text)
        self._screen.buffer.insert_text(taken)
        if taken != text:
            self.show_hint("Tab opens what was pasted, Backspace takes it back")

    def erase(self) -> None:
        """Erase the character before the cursor, a paste at once, or in an empty input what was attached last."""
        buffer = self._screen.buffer
        if not buffer.text and self.enclosures:
            self.show_hint(f"{self.enclosures.take_back()} stays here")
        else:
            mark = self._pastes.mark_before(buffer.document.text_before_cursor)
            buffer.delete_before_cursor(len(mark) or 1)

    def edit(self) -> None:
        """Open the input in an editor."""
        if not self._screen.is_lent:
            self._screen.app.create_background_task(self._edit())

    async def _edit(self) -> None:
        text = self._pastes.opened(self._screen.buffer.text)
        try:
            self.put(self._pastes.folded(await self._screen.lend(lambda: edited(text))))
        except KvchatError as error:
            self._face.show_error(error)

    def redraw_all(self) -> None:
        """Clear the screen and draw it again."""
        self._screen.clear()

    def show_thought(self) -> None:
        """Show what the model thought before its last answer."""
        if self._face.thought:
            self._face.show(self._face.thought.strip("\n"))
        else:
            self.show_hint("the last answer came without reasoning")

    # Going back

    def rewind(self) -> None:
        """List the user's messages, to go back to one."""
        path = self._face.session.path
        if not path:
            self.show_hint("there is no message to go back to")
            return
        self.chooser.open(
            "go back to before: (Enter takes it, Esc leaves)",
            [exchange.user.text for exchange in path],
            lambda number: self._go_back(len(path) - number),
        )

    def _go_back(self, num_exchanges: int) -> None:
        undone = self._face.session.undo(num_exchanges)
        self.put(undone[0].user.text)
        messages = "a message is" if num_exchanges == 1 else f"{num_exchanges} messages are"
        self._face.show(
            f"{messages} taken back; what was said stays as a branch, and the message is in the input"
        )

    def show_variant(self, command: str) -> None:
        """Go to the next or the previous answer that there is to the last message."""
        self._turns.add(command)

    def offer(self, title: str, choices: Sequence[Choice], at: int) -> None:
        """Show a list whose rows run commands. While something is being typed it takes no keys: it is printed."""
        labels = [sanitize(choice.label) for choice in choices]
        if self._screen.buffer.text not in ("", self._put):
            shown = zip(choices[:_PRINTED], labels, strict=False)
            lines = [f"{choice.command}  {label}" for choice, label in shown]
            self._face.show("\n".join([title.partition("(")[0].strip(), *lines]))
            return
        self.chooser.open(title, labels, lambda row: self._run_choice(choices[row]), at)
        self._screen.app.invalidate()

    def _run_choice(self, choice: Choice) -> None:
        if choice.command:
            self._turns.add(choice.command)
