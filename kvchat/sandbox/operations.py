"""What may be called of the values in a template, and what it would cost to ask: rows by name. Knows no environment.

A method or a filter that makes much out of little is measured before it runs; one that is not listed is not to be had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any

from kvchat.sandbox.meter import Meter, OverLimit

Check = Callable[..., None]
"""Takes the meter, and what the operation is called with; raises OverLimit."""

_FEW, _LONGEST_FORMAT, _SMALL = 64, 1000, 20_000
_MAX_STEPS = 50_000_000
_MAX_LISTS = 10_000
_WIDE = re.compile(r"\d{4}|\*")
_FIELD = re.compile(r"%(?:\([^)]*\))?([-#0 +*\d.]*)[a-zA-Z%]|%")


def _pairs(meter: Meter, left: object, right: object) -> None:
    """For operations that may compare every letter of one text with every letter of the other."""
    if isinstance(left, str) and isinstance(right, str) and len(left) * len(right) > _MAX_STEPS:
        raise OverLimit("it compares texts that are too long")


def _strip(meter: Meter, text: object, chars: object = None) -> None:
    _pairs(meter, text, chars)


def _search_backwards(meter: Meter, text: object, sought: object = None, *more: object) -> None:
    _pairs(meter, text, sought)


def _width(meter: Meter, text: object, width: object = 80, *more: object) -> None:
    if isinstance(width, int):
        meter.fit(width)


def _expand(meter: Meter, text: str, tabsize: int = 8) -> None:
    meter.fit(text.count("\t") * max(tabsize, 0) + len(text))


def _replace(meter: Meter, text: object, old: object, new: object, *more: object, **named: object) -> None:
    whole, sought, given = str(text), str(old), str(new)
    meter.fit(len(whole) + whole.count(sought) * len(given))


def _join_method(meter: Meter, text: str, values: object = ()) -> None:
    _join(meter, values, text)


def _join(meter: Meter, values: object, d: object = "", attribute: object = None) -> None:
    count = len(values) if isinstance(values, (str, list, tuple, Mapping)) else _MAX_LISTS
    meter.fit(count * len(str(d)))


def _indent(meter: Meter, text: object, width: object = 4, *more: object, **named: object) -> None:
    meter.spend(meter.weight(text))
    whole = str(text)
    size = len(width) if isinstance(width, str) else int(width) if isinstance(width, int) else 0
    meter.fit(len(whole) + (len(whole.splitlines()) + 1) * size)


def _batch(meter: Meter, values: object, linecount: int = 1, *more: object, **named: object) -> None:
    if not isinstance(linecount, int) or linecount > _MAX_LISTS:
        raise OverLimit("it cuts lists into pieces that are too large")


def _sum(meter: Meter, values: object, attribute: object = None, start: object = 0) -> None:
    if not isinstance(start, (int, float)):
        raise OverLimit("it adds up what are no numbers")


def _round(meter: Meter, value: object, precision: object = 0, *more: object, **named: object) -> None:
    if not isinstance(precision, int) or abs(precision) > _FEW:
        raise OverLimit("it rounds too finely")


def _small(meter: Meter, value: object, *more: object, **named: object) -> None:
    if meter.weight(value) > _SMALL:
        raise OverLimit("it lays out a text that is too long")


def check_percent(meter: Meter, text: object, *values: object, **named: object) -> None:
    """Whether `text % values` stays within bounds."""
    form = str(text)
    fields = [found.group(1) or "" for found in _FIELD.finditer(form)]
    if any(_WIDE.search(field) for field in fields):
        raise OverLimit("it pads a text too widely")
    _check_fields(meter, form, len(fields), (*values, *named.values()))


def check_format(meter: Meter, text: str, *values: object, **named: object) -> None:
    """Whether `text.format(values)` stays within bounds."""
    if re.search(r"\{[^{}]*:[^{}]*(\d{4}|\{)", text):
        raise OverLimit("it pads a text too widely")
    _check_fields(meter, text, text.count("{"), (*values, *named.values()))


def _check_fields(meter: Meter, form: str, count: int, values: Iterable[object]) -> None:
    largest = max((meter.weight(value) for value in values), default=0)
    meter.fit(len(form) + count * (largest + _FEW))


def check_moment_format(meter: Meter, moment: object, form: str = "") -> None:
    """Whether a date's `strftime(form)` stays within bounds."""
    if not isinstance(form, str) or len(form) > _LONGEST_FORMAT or re.search(r"%[^a-zA-Z%]*\d", form):
        raise OverLimit("it asks for a time in too long a form")


def as_json(meter: Meter, value: object, options: dict[str, Any]) -> str:
    """What `json.dumps` gives, its pieces counted where they are indented."""
    indent, separators = options.get("indent"), options.get("separators")
    if meter.weight(indent) + meter.weight(separators) > _FEW or (isinstance(indent, int) and indent > _FEW):
        raise OverLimit("it indents too widely")
    meter.spend(meter.weight(value))
    if options.get("indent") is None:
        return json.dumps(value, **options)
    size, pieces = 0, []
    for piece in json.JSONEncoder(**options).iterencode(value):
        size += len(piece)
        meter.fit(size)
        meter.spend()
        pieces.append(piece)
    return "".join(pieces)


_FREE_TEXT = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix split splitlines "
    "startswith swapcase title upper escape unescape striptags"
)
_TEXT: dict[str, Check | None] = dict.fromkeys(_FREE_TEXT.split()) | {
    "center": _width,
    "expandtabs": _expand,
    "join": _join_method,
    "ljust": _width,
    "lstrip": _strip,
    "replace": _replace,
    "rfind": _search_backwards,
    "rindex": _search_backwards,
    "rjust": _width,
    "rpartition": _search_backwards,
    "rsplit": _search_backwards,
    "rstrip": _strip,
    "strip": _strip,
    "zfill": _width,
}
METHODS: Mapping[type, Mapping[str, Check | None]] = {
    str: _TEXT,
    dict: dict.fromkeys(("get", "items", "keys", "values", "copy")),
    list: dict.fromkeys(("count", "index", "copy")),
    tuple: dict.fromkeys(("count", "index")),
    int: dict.fromkeys(("bit_length",)),
    float: dict.fromkeys(("is_integer",)),
    date: {"strftime": check_moment_format, "isoformat": None},
}
"""The methods that a template may call, by the type of what they belong to."""

_LAZY = "count d default first get items keys last length map reject rejectattr safe select selectattr values"
ONE_STEP = frozenset(_LAZY.split())
"""The methods and filters that do not go through their values, at least not at once."""

_LINEAR = (
    "abs attr capitalize dictsort e escape filesizeformat float forceescape groupby int list lower max min random "
    "reverse sort string striptags title tojson truncate unique upper urlencode wordcount xmlattr"
)
FREE_FILTERS = frozenset(_LINEAR.split())
CHECKED_FILTERS: Mapping[str, Check] = {
    "batch": _batch,
    "center": _width,
    "format": check_percent,
    "indent": _indent,
    "join": _join,
    "pprint": _small,
    "replace": _replace,
    "round": _round,
    "slice": _batch,
    "sum": _sum,
    "trim": _strip,
    "urlize": _small,
    "wordwrap": _small,
}
"""Every filter of Jinja's is in one of the three."""
