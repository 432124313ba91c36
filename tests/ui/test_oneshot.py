"""Questions and answers without a dialogue: what goes to which stream, in which form."""

import io
import json
import os
import signal
import threading
import time

import pytest

from kvchat.backends.base import Phase
from kvchat.chat.session import Session
from kvchat.errors import ContextOverflowError, UsageError
from kvchat.ui.oneshot import Form, OneShot
from kvchat.ui.questions import messages_of, one_message
from tests.scripted import ScriptedBackend


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def asked(
    *messages: str,
    form: Form | None = None,
    stdout: io.StringIO | None = None,
    stderr: io.StringIO | None = None,
) -> tuple[int, str, str]:
    stdout, stderr = stdout or io.StringIO(), stderr or io.StringIO()
    shot = OneShot(Session(ScriptedBackend()), form or Form(), stdout=stdout, stderr=stderr)
    return shot.run(messages), stdout.getvalue(), stderr.getvalue()


def test_stdout_carries_the_answer_alone() -> None:
    assert asked("hello") == (0, "[1] you said: hello\n", "")


@pytest.mark.parametrize("end", ["", "\\n", "\\n\\n\\n"])
def test_an_answer_ends_with_exactly_one_newline(end: str) -> None:
    assert asked(f"say one\\n\\ntwo{end}")[1] == "one\n\ntwo\n"


def test_piped_text_comes_before_the_prompt() -> None:
    assert one_message("what is this?", "a file\n") == ["a file\n\nwhat is this?"]
    assert one_message(None, "a file\n") == ["a file"]
    assert one_message("just this", "") == ["just this"]


@pytest.mark.parametrize(("prompt", "piped"), [(None, ""), ("", "\n"), ("  ", "")])
def test_nothing_to_ask_is_a_usage_error(prompt: str | None, piped: str) -> None:
    with pytest.raises(UsageError):
        one_message(prompt, piped)


def test_turns_are_lines_or_json_strings_and_empty_lines_are_skipped() -> None:
    lines = ["plain\n", "\n", '"two\\nlines"\r\n', '"said" he\n', "  \n", '""\n', "last"]
    assert list(messages_of(lines)) == ["plain", "two\nlines", '"said" he', "last"]


def test_turns_are_answered_in_one_conversation() -> None:
    assert asked("one", "two")[1] == "[1] you said: one\n[3] you said: two\n"


def test_what_every_next_prompt_begins_with_is_prepared_between_turns_and_not_behind_the_last() -> None:
    backend = ScriptedBackend()
    shot = OneShot(Session(backend), Form(), stdout=io.StringIO(), stderr=io.StringIO())
    shot.run(["one", "two", "three"])
    assert [len(history) for history in backend.prepared] == [2, 4]
    assert [len(history) for history in backend.histories] == [1, 3, 5]


def test_json_has_the_documented_shape() -> None:
    code, out, _ = asked("hello there", "again", form=Form(json=True, tokens=True))
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert list(first) == [
        "id",
        "session_id",
        "model",
        "response",
        "reasoning",
        "finish_reason",
        "usage",
        "timings",
        "cache",
        "weights",
        "tokens",
    ]
    assert first["model"] == "scripted"
    assert first["response"] == "[1] you said: hello there"
    assert first["finish_reason"] == "stop"
    assert first["session_id"] == second["session_id"]
    assert first["id"] != second["id"]
    usage, timings, cache = second["usage"], second["timings"], second["cache"]
    assert set(usage) == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
    assert set(timings) == {
        "load_ms",
        "kv_load_ms",
        "cache_n",
        "prompt_n",
        "prompt_ms",
        "predicted_n",
        "predicted_ms",
        "ttft_ms",
        "draft_n",
        "draft_n_accepted",
        "idle_n",
        "idle_ms",
        "ahead_n",
        "ahead_used_n",
        "ahead_ms",
        "ahead_saved_ms",
    }
    assert list(cache)[:4] == ["live", "tiers", "diverged_at", "reason"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": timings["cache_n"]}
    assert timings["cache_n"] + timings["prompt_n"] == usage["prompt_tokens"]
    assert set(second["tokens"]) == {"prompt", "completion"}


def test_json_without_tokens_has_no_ids() -> None:
    assert "tokens" not in json.loads(asked("hello", form=Form(json=True))[1])


def test_json_lines_come_one_by_one() -> None:
    out, seen = io.StringIO(), []

    def messages():  # type: ignore[no-untyped-def]
        yield "one"
        seen.append(out.getvalue())
        yield "two"

    OneShot(Session(ScriptedBackend()), Form(json=True), stdout=out, stderr=io.StringIO()).run(messages())
    assert json.loads(seen[0])["response"] == "[1] you said: one"


def test_reasoning_goes_to_stderr_and_not_at_all_when_quiet() -> None:
    assert asked("think") == (0, "[1] you said: think\n", "hm 0 hm 1 hm 2 \n")
    assert asked("think", form=Form(quiet=True)) == (0, "[1] you said: think\n", "")


def test_reasoning_can_be_hidden() -> None:
    assert asked("think", form=Form(reasoning=False)) == (0, "[1] you said: think\n", "")
    report = json.loads(asked("think", form=Form(json=True, reasoning=False))[1])
    assert report["reasoning"] == "hm 0 hm 1 hm 2 "


def test_markdown_is_rendered_when_asked_for_and_without_styles_in_a_pipe() -> None:
    message = "say # Title\\n\\n- **bold**\\n\\n\\n"
    assert asked(message)[1] == "# Title\n\n- **bold**\n"
    assert asked(message, form=Form(markdown=True))[1] == "Title\n\n • bold\n"
    assert "\x1b[1mbold" in asked(message, form=Form(markdown=True, styled=True))[1]
    assert "\x1b[1mbold" in asked(message, form=Form(markdown=True), stdout=Terminal())[1]
    report = json.loads(asked(message, form=Form(markdown=True, json=True))[1])
    assert report["response"] == "# Title\n\n- **bold**\n\n\n"


def test_statistics_go_to_a_terminal_dim_and_to_a_pipe_only_when_asked() -> None:
    _, _, seen = asked("hello", stderr=Terminal())
    assert seen.startswith("\x1b[2mcached 0/1 (0%) · prefill 1 in")
    assert asked("hello", stderr=Terminal(), form=Form(color=False))[2].startswith("cached 0/1")
    assert asked("hello", stderr=Terminal(), form=Form(quiet=True))[2] == ""
    assert asked("hello", form=Form(verbose=True))[2].startswith("cached 0/1")


def test_notices_go_to_stderr() -> None:
    assert asked("notice")[2] == "kvchat: the engine was started again\n"


def test_control_sequences_are_shown_in_a_terminal_and_passed_to_a_pipe() -> None:
    assert asked("say \\x1b[31mred")[1] == "\x1b[31mred\n"
    assert asked("say \\x1b[31mred", stdout=Terminal())[1] == "␛[31mred\n"


def test_an_error_before_the_first_text_leaves_stdout_empty() -> None:
    out = io.StringIO()
    shot = OneShot(Session(ScriptedBackend()), Form(), stdout=out, stderr=io.StringIO())
    with pytest.raises(ContextOverflowError):
        shot.run(["overflow"])
    assert out.getvalue() == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_keeps_what_was_said_and_ends_with_130(as_json: bool) -> None:
    session, out = Session(ScriptedBackend()), io.StringIO()

    def interrupt() -> None:
        while session.backend.status().phase is not Phase.DECODING:
            time.sleep(0.005)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = OneShot(session, Form(json=as_json), stdout=out, stderr=io.StringIO()).run(["slow 500", "never"])
    thread.join()
    assert code == 130
    said = (
        json.loads(out.getvalue()) if as_json else {"response": out.getvalue(), "finish_reason": "cancelled"}
    )
    assert said["response"].startswith("word0 ")
    assert "word400" not in said["response"]
    assert said["finish_reason"] == "cancelled"
