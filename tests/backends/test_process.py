from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import (
    Answer,
    Done,
    FinishReason,
    Notice,
    Options,
    Phase,
    Prefilling,
    Role,
    Text,
    Turn,
)
from kvchat.backends.engine_process import EngineProcess
from kvchat.backends.local import LocalBackend
from kvchat.backends.process import MAX_LOST, ProcessBackend, _cut_short
from kvchat.backends.wire import error_from_wire, error_to_wire, from_wire, to_wire
from kvchat.config import Config
from kvchat.errors import ContextOverflowError, EngineDiedError, ModelUnavailableError, OutOfMemoryError
from tests.tiny import tiny_config


@pytest.fixture
def backend(make_config: Callable[..., Config]) -> Iterator[ProcessBackend]:
    backend = ProcessBackend(make_config())
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def talkative(long_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBackend]:
    backend = ProcessBackend(tiny_config(long_path, tmp_path_factory.mktemp("talkative")))
    yield backend
    backend.close()


def user(text: str) -> Turn:
    return Turn(Role.USER, text)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_child_answers_as_this_process_would(
    backend: ProcessBackend, make_config: Callable[..., Config]
) -> None:
    here = LocalBackend(make_config(cache__disk="0"))
    history = [Turn(Role.SYSTEM, "be \u2028 brief ö"), user("hello\nworld")]
    for question in ("and", "so"):
        answers: list[Answer] = []
        for one in (backend, here):
            *_, last = one.answer(history, Options(max_tokens=8))
            assert isinstance(last, Done)
            answers.append(last.answer)
        assert answers[0].completion == answers[1].completion
        assert answers[0].usage == answers[1].usage
        history += [answers[0].turn(), user(question)]
    assert backend.info().context == here.info().context
    assert backend.count("hello") == here.count("hello")
    here.close()


def test_half_a_character_is_answered_and_counted_as_a_mark(backend: ProcessBackend) -> None:
    options = Options(temperature=0.0, max_tokens=4)
    halves, marked = (
        list(backend.answer([Turn(Role.SYSTEM, text), user(text)], options))[-1]
        for text in ("a\ud800", "a\ufffd")
    )
    assert isinstance(halves, Done) and isinstance(marked, Done)
    assert halves.answer.prompt == marked.answer.prompt
    assert backend.count("a\ud800") == backend.count("a\ufffd")


def test_errors_keep_their_type_and_remedy(backend: ProcessBackend) -> None:
    with pytest.raises(ContextOverflowError, match="/clear") as caught:
        list(backend.answer([user("hello " * 600)], Options()))
    assert caught.value.remedy


def test_a_model_that_is_not_there_is_an_error_of_the_call_and_no_death(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    backend = ProcessBackend(make_config(model__name=str(tmp_path / "nowhere")))
    with pytest.raises(ModelUnavailableError):
        backend.info()
    assert wait_until(lambda: backend.status().phase is Phase.FAILED)
    backend.close()


def test_cancelling_keeps_what_was_said(talkative: ProcessBackend) -> None:
    seen = 0
    for event in talkative.answer([user("hello")], Options()):
        seen += isinstance(event, Text)
        if seen == 3:
            talkative.cancel()
    assert isinstance(event, Done)
    assert event.answer.finish_reason is FinishReason.CANCELLED
    assert 3 <= len(event.answer.completion) < 29_000


def test_closing_the_stream_cancels_and_the_next_answer_comes(talkative: ProcessBackend) -> None:
    stream = talkative.answer([user("hello")], Options())
    next(stream)
    stream.close()
    *_, last = talkative.answer([user("hello")], Options(max_tokens=2))
    assert isinstance(last, Done)


def test_an_engine_killed_in_mid_answer_is_started_again_and_nothing_said_is_lost(
    talkative: ProcessBackend,
) -> None:
    history = [user("hello")]
    shown = ""
    notices = []
    killed = False
    for event in talkative.answer(history, Options()):
        if isinstance(event, Text):
            shown += event.text
            if len(shown) > 5 and not killed:
                killed = True
                pid = talkative.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
        if isinstance(event, Notice):
            notices.append(event.message)
    assert isinstance(event, Done)
    assert event.answer.text == shown
    assert len(notices) == 1
    assert "SIGKILL" in notices[0]
    assert talkative.pid != pid
    *_, last = talkative.answer([*history, event.answer.turn(), user("and")], Options(max_tokens=3))
    assert isinstance(last, Done)
    assert shown[:5] in last.answer.turn().text or last.answer.usage.prompt_tokens > len(shown) // 4


def kill(backend: ProcessBackend, signum: signal.Signals = signal.SIGKILL) -> None:
    assert backend.pid is not None
    os.kill(backend.pid, signum)


def test_an_answer_that_is_done_stays_as_it_is_when_the_engine_dies_behind_it(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = Done(replace(_cut_short([Text("hello")]), completion=(1, 2), finish_reason=FinishReason.STOP))
    script = tmp_path / "engine"
    script.write_text("#!/bin/sh\nread line\nread line\ncat <<'END'\n" + lines(Text("hello"), done) + "END\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert list(backend.answer([user("hello")], Options())) == [Text("hello"), done]


def lines(*events: object) -> str:
    """What an engine writes of the first call's events."""
    values = ({"type": type(event).__name__, "value": to_wire(event)} for event in events)
    return "".join(json.dumps({"id": 1, "kind": "event", "value": value}) + "\n" for value in values)


def test_an_engine_killed_twice_while_it_loads_answers_all_the_same(backend: ProcessBackend) -> None:
    backend.start()
    kill(backend)
    assert wait_until(lambda: backend.status().phase is Phase.STARTING)
    backend.start()
    first, answers = backend.pid, backend.answer([user("hello")], Options(max_tokens=2))
    threading.Thread(target=kill, args=(backend,)).start()
    *_, last = answers
    assert isinstance(last, Done)
    assert backend.pid != first


def test_an_engine_that_can_never_be_started_is_given_up_until_somebody_asks(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineDiedError, match=rf"ended {MAX_LOST} times while it loaded \(exit code 1\)"):
        list(backend.answer([user("hello")], Options()))
    backend.start()
    assert backend.status().phase is Phase.FAILED
    with pytest.raises(EngineDiedError, match="while it loaded"):
        backend.info()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(EngineDiedError, match="could not be started"):
        list(backend.answer([user("hello")], Options()))
    monkeypatch.undo()
    *_, last = backend.answer([user("hello")], Options(max_tokens=2))
    assert isinstance(last, Done)


def test_nobody_waits_for_an_engine_that_was_stopped(talkative: ProcessBackend) -> None:
    backend = ProcessBackend(talkative.config)
    stream = backend.answer([user("hello")], Options())
    next(stream)
    pid = backend.pid
    kill(backend, signal.SIGSTOP)

    def ask() -> None:
        with pytest.raises(EngineDiedError):
            list(backend.answer([user("x" * 2**22)], Options()))

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.5)  # by now it is being written, to nobody
    for _ in range(1000):
        backend.cancel()
    backend.close()
    assert pid is not None and not is_alive(pid)


def test_an_engine_that_was_stopped_goes_on_when_it_is_continued(talkative: ProcessBackend) -> None:
    stream = talkative.answer([user("hello")], Options(max_tokens=200))
    next(stream)
    kill(talkative, signal.SIGSTOP)
    threading.Timer(0.3, kill, (talkative, signal.SIGCONT)).start()
    *_, last = stream
    assert isinstance(last, Done)
    assert len(last.answer.completion) == 200


def test_closing_one_stream_leaves_the_others_alone(talkative: ProcessBackend) -> None:
    endless = talkative.answer([user("hello")], Options())
    next(endless)
    ends: list[object] = []

    def ask() -> None:
        ends.append([*talkative.answer([user("world")], Options(max_tokens=3))][-1])

    second = threading.Thread(target=ask)
    second.start()
    for _ in range(20):
        talkative.count("by now the other call is known there")
    endless.close()
    second.join()
    (last,) = ends
    assert isinstance(last, Done)
    assert last.answer.finish_reason is FinishReason.LENGTH


def test_an_engine_of_another_version_is_named(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "engine"
    said = (
        '{"id": 1, "kind": "event", "value": {"type": "Thought"}}\\n{"id": 1, "kind": "result", "value": {}}'
    )
    script.write_text(f"#!/bin/sh\nread line\nread line\nprintf '{said}\\n'\ncat >/dev/null\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(EngineDiedError, match="another version"):
        list(backend.answer([user("hello")], Options()))


def test_an_engine_is_started_again_though_the_working_folder_is_gone(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    *_, last = backend.answer([user("hello")], Options(max_tokens=2))
    assert isinstance(last, Done)


def test_an_engine_that_speaks_never_says_that_it_starts(make_config: Callable[..., Config]) -> None:
    process = EngineProcess(io.BytesIO(), io.BytesIO())
    assert process._status().phase is Phase.LOADING
    process._backend = LocalBackend(make_config())
    assert process._backend.status().phase is Phase.STARTING
    assert process._status().phase is Phase.LOADING


def test_an_engine_killed_before_it_spoke_answers_after_its_restart(backend: ProcessBackend) -> None:
    backend.info()
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)
    events = list(backend.answer([user("hello")], Options(max_tokens=3)))
    assert isinstance(events[-1], Done)
    assert events[-1].answer.finish_reason is FinishReason.LENGTH


def test_of_an_engine_that_ended_it_is_known_why(backend: ProcessBackend) -> None:
    backend.info()
    assert backend.pid is not None
    os.kill(backend.pid, signal.SIGKILL)
    while backend.status().phase is not Phase.STARTING:
        time.sleep(0.01)
    assert backend.status().detail == "the engine ended (killed by SIGKILL, perhaps for lack of memory)"


def test_closing_leaves_no_process_behind_and_may_be_repeated(backend: ProcessBackend) -> None:
    backend.info()
    pid = backend.pid
    assert pid is not None
    backend.close()
    backend.close()
    assert not is_alive(pid)
    with pytest.raises(EngineDiedError):
        backend.info()


@pytest.mark.parametrize("while_loading", [True, False])
def test_the_engine_ends_when_its_terminal_is_killed(
    make_config: Callable[..., Config], tmp_path: Path, while_loading: bool
) -> None:
    script = (
        "import json, sys, time\n"
        "from kvchat.config import Config\n"
        "from kvchat.backends.process import ProcessBackend\n"
        "backend = ProcessBackend(Config.from_json(json.loads(sys.argv[1])))\n"
        "backend.start()\n"
        + ("" if while_loading else "backend.info()\n")
        + "print(backend.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    arguments = [sys.executable, "-c", script, json.dumps(make_config().to_json())]
    terminal = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert terminal.stdout is not None
    engine = int(terminal.stdout.readline())
    assert is_alive(engine)
    terminal.kill()
    terminal.wait()
    assert wait_until(lambda: not is_alive(engine))


def test_the_engine_is_not_in_the_terminals_process_group(backend: ProcessBackend) -> None:
    backend.start()
    assert backend.pid is not None
    assert os.getpgid(backend.pid) != os.getpgid(0)


def test_the_terminals_side_loads_no_torch() -> None:
    code = "import sys, kvchat.backends.process; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_survive_the_wire() -> None:
    turn = Turn(Role.ASSISTANT, "a\nb\u2028", "r", (1, 2), "t")
    assert from_wire(Turn, to_wire(turn)) == turn
    assert from_wire(Turn, to_wire(user("x"))) == user("x")
    error = error_from_wire(error_to_wire(ContextOverflowError("a", "b")))
    assert (type(error), error.message, error.remedy) == (ContextOverflowError, "a", "b")
    assert "internal error" in error_from_wire(error_to_wire(ZeroDivisionError("x"))).message
    for exhausted in (MemoryError(), OSError(errno.ENOMEM, "no memory")):
        assert isinstance(error_from_wire(error_to_wire(exhausted)), OutOfMemoryError)


def test_values_of_another_version_keep_what_is_known() -> None:
    wire = to_wire(Options(seed=3)) | {"new": 1}
    del wire["stop"]
    assert from_wire(Options, wire) == Options(seed=3)
    for strange in ({"role": "user"}, [], 3, "text"):
        with pytest.raises((KeyError, TypeError, ValueError)):
            from_wire(Turn, strange)


def test_warming_and_the_cache_view_cross_the_pipe(talkative: ProcessBackend) -> None:
    system = Turn(Role.SYSTEM, "the quick brown fox " * 20)
    *_, warmed = talkative.warm([system])
    assert isinstance(warmed, Prefilling)
    view = talkative.cache([system, user("hello")])
    assert view.rows[0].live == warmed.cached + warmed.total
    assert view.rows[1].live == 0
