"""The tables of all families in RESULTS*.md: rows are replaced one by one, so that a part can be run alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from filelock import FileLock

STAGES = ("prefill", "continued", "ram", "branch", "window", "cancel", "disk")
_HEAD = f"""\
# Every causal language model that transformers can build

Written by `pytest -m sweep_all --device DEVICE`: tiny random models in float32, every logit of a conversation that is continued over
three turns, restored from RAM, branched, cut back past the sliding window, cancelled, and restored from disk, against
transformers computing the same tokens from scratch in one go. Shown is the largest difference of each stage; the bound
is 1e-4. `not built`: no tiny version could be made of the default config. `refused`: kvchat says so when it loads one.

transformers {transformers.__version__}, torch {torch.__version__.split("+")[0]}

| family | policy | continuation | {" | ".join(STAGES)} | verdict |
|---|---|---|{"---|" * len(STAGES)}---|
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one family."""

    family: str
    policy: str = ""
    continuation: str = ""
    differences: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""

    def __str__(self) -> str:
        stages = [f"{self.differences[stage]:.0e}" if stage in self.differences else "" for stage in STAGES]
        verdict = self.verdict.replace("|", "/")
        return f"| {' | '.join([self.family, self.policy, self.continuation, *stages, verdict])} |"


def record(row: Row, device: str) -> None:
    """Put `row` in its place in the table of that device; several test processes may do so at once."""
    replace_row("RESULTS.md" if device == "cpu" else f"RESULTS-{device}.md", _HEAD, row.family, str(row))


def replace_row(file: str, head: str, family: str, line: str) -> None:
    """Put a family's line in its place in the table of a file that begins with `head`."""
    path = Path(__file__).with_name(file)
    with FileLock(path.with_suffix(".lock")):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
        rows.pop("family", None)
        rows[family] = line
        path.write_text(head + "\n".join(rows[name] for name in sorted(rows)) + "\n", encoding="utf-8")
