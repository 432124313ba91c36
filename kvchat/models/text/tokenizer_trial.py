"""Tries out, in a child with limits, what tokenizers may never come back from: regexes that backtrack, broken tables.

Native code can be neither interrupted nor caught. Nearly all published tokenizers hold nothing that needs a trial; a
regex is suspect when it repeats what repeats already, or repeats many things in a row.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvchat.children import child_environment, child_folder, own_command
from kvchat.errors import ModelUnavailableError

TRIAL_S = 4
"""What a trial may take of a processor."""
_PIPELINE = ("normalizer", "pre_tokenizer", "decoder")
_BARE: Mapping[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "post_processor": None,
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}
_REGEX = re.compile(r'"Regex"\s*:\s*("(?:[^"\\]|\\.)*")')
_NEEDS_TRIAL = re.compile(
    r'"Precompiled"|"String"\s*:\s*""|"Regex"\s*:\s*""|"Replace"\s*,\s*"pattern"\s*:\s*\{\s*"Regex"'
)
"""What native code is known to die of: broken tables, and replacing what is empty."""
_ATOM = re.compile(r"\\[pPx]\{[^}]*\}|\\.|\[(?:[^\]\\]|\\.)*\]", re.DOTALL)
_REFERENCE = re.compile(r"\\[1-9k]")
_REPEAT = re.compile(r"[*+]|\{\d*,\d*\}|\{\d{2,}\}")
_UNBOUNDED = re.compile(r"[*+]|\{\d*,\}")
_MANY_REPEATS = 4
_LONG_REGEX = 2000


def check_pipeline(source: str, path: Path) -> None:
    """Raise ModelUnavailableError for a tokenizer.json that does not come to an end, or dies, on some texts."""
    patterns = [json.loads(quoted) for quoted in _REGEX.findall(source)]
    if not any(map(is_suspect, patterns)) and not _NEEDS_TRIAL.search(source):
        return
    parsed = json.loads(source)
    if not isinstance(parsed, dict):
        raise ValueError("it is no JSON object")
    wanted = {name: parsed.get(name) for name in _PIPELINE} | {"patterns": patterns}
    if not _comes_through(wanted):
        raise ModelUnavailableError(f"{path} fails or never ends on some texts", "take another model")


def is_suspect(pattern: str) -> bool:
    """Whether a regex may try exponentially or at least very many ways to match."""
    outline = _ATOM.sub(lambda atom: atom[0] if _REFERENCE.match(atom[0]) else "x", pattern)
    if len(pattern) > _LONG_REGEX or _REFERENCE.search(outline):
        return True
    num_repeats, groups = 0, [False]  # of each open group, whether it repeats something or has alternatives
    for position, letter in enumerate(outline):
        if letter == "(":
            groups.append(False)
        elif letter == "|":
            num_repeats = num_repeats if len(groups) > 1 else 0
            groups[-1] = True
        elif letter == ")" and len(groups) > 1:
            is_loose = groups.pop()
            if is_loose and _REPEAT.match(outline, position + 1):
                return True
            groups[-1] |= is_loose
        elif _UNBOUNDED.match(outline, position):
            num_repeats, groups[-1] = num_repeats + 1, True
        if num_repeats >= _MANY_REPEATS:
            return True
    return False


def _comes_through(wanted: dict[str, Any]) -> bool:
    try:
        done = subprocess.run(
            own_command("kvchat.models.text.tokenizer_trial"),
            input=json.dumps(wanted).encode(),
            capture_output=True,
            timeout=5 * TRIAL_S,
            cwd=child_folder(),
            env=child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _try_out(wanted: dict[str, Any]) -> None:
    """Push texts through the pipeline that make a careless regex backtrack: of few letters, long, ending otherwise."""
    from tokenizers import Tokenizer

    rest = {name: wanted[name] for name in _PIPELINE}
    tokenizer = Tokenizer.from_str(json.dumps({**_BARE, **rest}))
    for words in _texts("".join(wanted["patterns"])):
        tokenizer.encode(words, add_special_tokens=False)
        if tokenizer.decoder:
            tokenizer.decoder.decode([words, "", words])


def _texts(patterns: str) -> list[str]:
    letters = list(
        dict.fromkeys("aA0 \n.-é中" + "".join(letter for letter in patterns if letter.isprintable()))
    )[:48]
    pairs = [one + other for one in letters[:14] for other in letters[:14]]
    return [
        *(letter * length + end for letter in letters for length in (30, 1500) for end in ("", "\x00", "!")),
        *(pair * 20 + "\x00" for pair in pairs),
        "",
    ]


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_S, TRIAL_S))


if __name__ == "__main__":
    _limit()
    _try_out(json.load(sys.stdin))
