from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvchat.bench.contender import Contender, ContenderError, Entry, Setup, parse_names, running
from kvchat.config import Config
from kvchat.errors import UsageError
from tests.models.gguf.architecture_files import TOKENS, write_from_record
from tests.tiny import random_tokens

ARCHITECTURES = Path(__file__).parents[1] / "fixtures" / "architectures.json"

LLAMA_CPP = '''
class Llama:
    """Generates as llama-cpp-python's does, and says what it was asked for by failing on it."""

    def __init__(self, path, *, n_ctx, n_threads, n_threads_batch, verbose):
        assert path.endswith(".gguf") and n_threads == n_threads_batch == 1 and not verbose
        self.resets = 0

    def reset(self):
        self.resets += 1

    def generate(self, tokens, *, temp):
        assert temp == 0.0 and len(tokens) == 5
        yield from range(3)

__version__ = "0.0"
'''


@pytest.fixture
def setup(make_config: Callable[..., Config]) -> Setup:
    return Setup(make_config(), threads=1)


@pytest.fixture
def llama_python(tmp_path: Path) -> Iterator[str]:
    """An interpreter that has a stand-in for llama-cpp-python."""
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    yield str(script)


def test_a_contender_is_named_once_and_known() -> None:
    assert parse_names("llama.cpp, nocache,nocache") == ["llama.cpp", "nocache"]
    assert parse_names(None) == []
    with pytest.raises(UsageError, match="'vllm'"):
        parse_names("vllm")


@pytest.mark.slow
def test_contenders_answer_and_are_gone_afterwards(setup: Setup) -> None:
    with running(("kvchat", "transformers"), setup) as contenders:
        for contender in contenders.values():
            for prompt in (random_tokens(30), random_tokens(20), random_tokens(40)):
                timing = contender.answer(prompt, 3)
                assert timing.first_s > 0 and timing.rest_s > 0
            assert contender.facts["threads"] == 1
            assert contender.peak_bytes() > 10_000_000
        children = [contender._child for contender in contenders.values()]
    assert [child.poll() for child in children] == [0, 0]


def test_a_model_without_a_gguf_is_refused_for_llama_cpp(setup: Setup) -> None:
    with pytest.raises(ContenderError, match=r"no GGUF.*take the default model or a \.gguf file"):
        Entry.of("llama.cpp", setup)


def test_an_interpreter_without_llama_cpp_says_what_to_install() -> None:
    script = Path(sys.modules["kvchat.bench.contender"].__file__ or "").with_name("llama_child.py")
    with pytest.raises(ContenderError, match=r"kvchat\[llama\].*--llama-python"):
        Contender("llama.cpp", [sys.executable, "-S", str(script)], {"gguf": "x.gguf"})


def test_llama_cpp_is_asked_for_the_same_ids(llama_python: str) -> None:
    script = Path(sys.modules["kvchat.bench.contender"].__file__ or "").with_name("llama_child.py")
    contender = Contender(
        "llama.cpp", [llama_python, str(script)], {"gguf": "x.gguf", "threads": 1, "context": None}
    )
    assert contender.answer([1, 2, 3, 4, 5], 3, reuse=False).rest_s >= 0
    assert contender.peak_bytes() > 0
    contender.close()


def test_llama_cpp_is_also_run_by_its_own_server(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    record = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))["llama"]
    gguf = write_from_record(tmp_path / "tiny.gguf", record)
    script = Path(sys.modules["kvchat.bench.contender"].__file__ or "").with_name("llama_child.py")
    hello = {"gguf": str(gguf), "threads": 1, "context": 128}
    contender = Contender("llama.cpp", [sys.executable, str(script)], hello)
    assert contender.facts["threads"] == 1
    first, again = (contender.answer(TOKENS, 3) for _ in range(2))
    assert first.first_s > 0 and first.rest_s > 0 and again.rest_s > 0
    contender.close()


def test_a_contender_that_dies_says_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no memory left')"]
    with pytest.raises(ContenderError, match="some: no memory left"):
        Contender("some", command, {})


@pytest.mark.slow
def test_a_model_that_can_not_be_had_is_refused_in_one_line(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ContenderError, match="kvchat: there is no model"):
        Entry.of("kvchat", Setup(make_config(model__name="/nowhere/at/all"))).start()
