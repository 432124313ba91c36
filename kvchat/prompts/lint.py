"""What keeps a prompt from being reused out of the cache, and what keeps it from working. Loads no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from jinja2 import TemplateSyntaxError, meta, nodes

from kvchat.errors import UsageError, one_line
from kvchat.prompts.prompt import Prompt
from kvchat.prompts.rendering import environment, rendered
from kvchat.sandbox.meter import OverLimit

_CLOCKS = ("now", "today")
_CHANCE = ("random", "shuffle", "uuid4", "randint", "lipsum")
_OTHER_CLOCKS = ("strftime_now", "utcnow", "time", "date", "datetime", "strftime")
_MARK = "\x00"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the line of the prompt's file."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Measure:
    """How long a text is: in tokens where a tokenizer is at hand, else in characters."""

    count: Callable[[str], int] = len
    unit: str = "characters"


def lint(prompt: Prompt, measure: Measure) -> list[Finding]:
    """What is wrong with a prompt, by its lines."""
    try:
        return _findings(prompt, measure)
    except RecursionError:
        return [Finding(prompt.first_line, "it is nested too deeply")]


def _findings(prompt: Prompt, measure: Measure) -> list[Finding]:
    findings = [] if prompt.description else [Finding(1, "there is no description")]
    if not prompt.body.strip():
        return [*findings, Finding(prompt.first_line, "it is empty")]
    env = environment(prompt.path.parent, datetime.min, _MARK)
    try:
        tree = env.parse(prompt.body)
    except TemplateSyntaxError as error:
        return [*findings, Finding(error.lineno + prompt.first_line - 1, error.message or "a syntax error")]
    except (OverLimit, RecursionError) as error:
        return [*findings, Finding(prompt.first_line, one_line(error))]
    findings.extend(_variables(prompt, tree, set(env.globals)))
    if all(name in prompt.vars for name in meta.find_undeclared_variables(tree) - set(env.globals)):
        findings.extend(_changing(prompt, tree, measure))
    return sorted(findings, key=lambda finding: finding.line)


def _variables(prompt: Prompt, tree: nodes.Template, known: set[str]) -> Iterator[Finding]:
    used = meta.find_undeclared_variables(tree) - known
    for name in sorted(used - set(prompt.vars)):
        first = min(node.lineno for node in tree.find_all(nodes.Name) if node.name == name)
        remedy = "write today() or now()" if name in _OTHER_CLOCKS else "declare it under vars"
        if name in _CHANCE:
            remedy = "leave it out"
        yield Finding(first + prompt.first_line - 1, f"{name!r} is not defined; {remedy}")
    for name in sorted(set(prompt.vars) - used):
        yield Finding(1, f"the variable {name!r} is declared and not used")


def _changing(prompt: Prompt, tree: nodes.Template, measure: Measure) -> Iterator[Finding]:
    """What differs from one use to the next while fixed text stands behind it; the first such thing counts."""
    changing = sorted(_sources(tree), key=lambda found: found[0])
    if not changing:
        return
    values = {name: default if default is not None else name.upper() for name, default in prompt.vars.items()}
    try:
        text = rendered(
            prompt.body,
            values,
            path=prompt.path,
            first_line=prompt.first_line,
            now=datetime.min,
            mark=_MARK,
        )
    except UsageError as error:
        yield Finding(prompt.first_line, error.message)
        return
    before, mark, after = text.partition(_MARK)
    rest = after.replace(_MARK, "")
    if mark and rest.strip(" \t\r\n.!)"):
        line, what = changing[0]
        kept, total = measure.count(before), measure.count(before + rest)
        yield Finding(
            line + prompt.first_line - 1,
            f"{what}: {kept} of {total} {measure.unit} survive; move it to the end, or give it with the message",
        )


def _sources(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """Line and kind of everything that changes by itself."""
    for name in tree.find_all(nodes.Name):
        if name.name in _CLOCKS and name.ctx == "load":
            yield name.lineno, f"the clock {name.name}() is read before fixed text"
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name in _CHANCE:
            yield filtered.lineno, f"a random value ({filtered.name}) stands before fixed text"
    for included in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        yield included.lineno, "a file that may change is included before fixed text"
