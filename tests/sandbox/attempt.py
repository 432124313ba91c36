"""A process of its own that renders hostile templates, so that its time and memory can be measured.

Reads `[kind, source]` as lines of JSON; for each it writes what came of it.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.models.text.template import ChatTemplate, Message
from kvchat.models.text.tokenizer import ChatTokenizer
from kvchat.prompts.prompt import Shelf, read_prompt
from tests.models.chat_templates import byte_tokenizer

NOW = datetime(2026, 11, 22, 12)


def as_template(source: str) -> int:
    """How long the prompt is that a model's template makes."""
    tokenizer = ChatTokenizer(byte_tokenizer(("<s>", "</s>")), control_text=source)
    template = ChatTemplate(source, tokenizer)
    history = [
        Message("user", "hello"),
        Message("assistant", "world", tokens=[60]),
        Message("user", "and so on"),
    ]
    return len(template.prompt(history))


def as_prompt(source: str) -> int:
    """How long the text is that a saved prompt's body makes."""
    path = Path("hostile.md")
    path.write_text(source, encoding="utf-8")
    return len(read_prompt(path, Shelf.HERE).render({}, NOW))


def attempt(kind: str, source: str) -> dict[str, object]:
    """What came of one: the error's exit code and words, and what it cost."""
    begun = time.process_time()
    code, said = 0, ""
    try:
        size = as_template(source) if kind == "template" else as_prompt(source)
    except KvchatError as error:
        code, said = error.exit_code, str(error)
        size = 0
    seconds = time.process_time() - begun
    status = Path(
        "/proc/self/status"
    ).read_text()  # getrusage counts what the process was before it became this one
    peak = int(status.split("VmHWM:")[1].split()[0]) >> 10
    return {"code": code, "said": said, "size": size, "seconds": seconds, "peak_mb": peak}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(attempt(*json.loads(line))), flush=True)
