"""Jinja's sandbox in which every operation is counted, so that whatever it runs ends soon and stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from kvchat.sandbox.code import BoundedCode
from kvchat.sandbox.meter import Meter, OverLimit
from kvchat.sandbox.operations import (
    CHECKED_FILTERS,
    FREE_FILTERS,
    METHODS,
    ONE_STEP,
    Check,
    as_json,
    check_format,
    check_percent,
)

MAX_SOURCE_CHARACTERS = 48_000
"""The longest published chat templates have a third of it."""
_FEW_ITEMS = 64
_SHORT = 1024  # characters: what is shorter is not counted where texts are joined; the loop around it is
_PLAIN_TESTS = (
    "defined undefined none boolean false true integer float string mapping number sequence iterable callable sameas "
    "escaped odd even filter test"
)
_ESCAPED = 5  # how much longer a text gets where it is escaped as HTML
_OF_JINJA = ("_loop_vars", "_block_vars")
_OWNERS = (Cycler, LoopContext, BlockReference)
_GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox with a meter: `meter.start` before each use. What passes the bounds raises OverLimit.

    Values are weighed where they are made: literals, sums, slices, captured blocks, and what calls and filters return.
    Loops, calls and comparisons look at the clock. Lazy values (`map`, `select`) make theirs in filters and loops.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        self.meter = Meter()
        # constants are not computed ahead: that would be done where nobody counts
        super().__init__(finalize=self.printed, optimized=False, **options)
        self.code_generator_class = BoundedCode
        filters: Mapping[str, Any] = dict(self.filters)
        tests: Mapping[str, Any] = dict(self.tests)
        self.filters = {
            name: function if name in ONE_STEP else self._metered(function, CHECKED_FILTERS.get(name))
            for name, function in filters.items()
            if name in CHECKED_FILTERS or name in FREE_FILTERS or name in ONE_STEP
        }
        self.filters["tojson"] = self._metered(self._to_json, None)
        self.tests = {
            name: function if name in _PLAIN_TESTS.split() else self._metered(function, None)
            for name, function in tests.items()
        }
        self.globals = {name: self.globals[name] for name in _GLOBALS}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise OverLimit(f"it has more than {MAX_SOURCE_CHARACTERS:,} characters")
        return super()._parse(source, name, filename)

    def get_template(self, *args: Any, **kwargs: Any) -> Template:
        """See jinja2; one operation, for includes that include each other."""
        self.meter.spend()
        return super().get_template(*args, **kwargs)

    # What compiled templates call

    def counted(self, values: Any) -> Any:
        """`values` for a loop, each pass of which is one operation."""
        if isinstance(values, (list, tuple, dict)) and len(values) <= _FEW_ITEMS:
            self.meter.spend()
            return values
        return self._counted(values)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.meter.spend()
            yield value

    def weighed(self, value: Any) -> Any:
        """A literal that was just made."""
        return self.meter.made(value)

    def printed(self, value: Any) -> Any:
        """A value that is about to be written out."""
        if type(value) is not str:
            self.meter.spend(self.meter.weight(value))
        elif len(value) > _SHORT:
            self.meter.spend(_ESCAPED * len(value))
        return value

    def compared(self, value: Any) -> Any:
        """A value that is about to be compared with another, or searched."""
        self.meter.spend(self._size((value,)))
        return value

    def cut(self, value: Any, part: slice) -> Any:
        """A part of a list or a text."""
        return self.meter.made(value[part])

    def chained(self, join: Callable[[Any], str], values: tuple[Any, ...]) -> str:
        """`values` in one text, by `~`."""
        size = 0
        for value in values:
            size += len(value) if type(value) is str else self.meter.weight(value)
        if size > _SHORT:
            self.meter.fit(size)
            self.meter.spend(size)
        return join(values)

    def concat(self, pieces: Iterable[str]) -> str:
        """What a template, a macro or a block writes."""
        kept: list[str] = []
        size, most = 0, self.meter.most
        for piece in pieces:
            size += len(piece)
            if size > most:
                self.meter.fit(size)
            kept.append(piece)
        self.meter.spend(size)
        return "".join(kept)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See jinja2, with a short way to what templates read most: a message's keys, and what is known to be harmless."""
        kind = type(obj)
        if kind is dict:
            if attribute in obj and not hasattr(dict, attribute):
                return obj[attribute]
        elif kind is Namespace or kind is LoopContext:
            return super().getattr(obj, attribute) if attribute[0] == "_" else self._own(obj, attribute)
        if attribute in METHODS.get(kind, ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def _own(self, obj: Any, attribute: str) -> Any:
        """An attribute of one of Jinja's own objects."""
        try:
            return getattr(obj, attribute)
        except AttributeError:
            return self.undefined(obj=obj, name=attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See jinja2."""
        meter = self.meter
        if operator == "+":
            if type(left) is str and type(right) is str:
                size = len(left) + len(right)
                if size > _SHORT:
                    meter.fit(size)
                    meter.spend(size)
                return left + right
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                meter.fit_bits(left.bit_length() * abs(right))
        elif isinstance(left, str):
            check_percent(meter, left, *(right if isinstance(right, tuple) else (right,)))
        return meter.made(super().call_binop(context, operator, left, right))

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self.meter.fit_bits(left.bit_length() + right.bit_length())
            return
        many, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(many, (str, list, tuple)) and isinstance(times, int):
            self.meter.fit(max(times, 0) * (self.meter.weight(many) + 1))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """See jinja2. Raises SecurityError for what is no function of ours and no harmless method."""
        owner = getattr(__obj, "__self__", None)
        methods = METHODS.get(type(owner)) or (_methods_of(owner) if owner is not None else None)
        meter = __self.meter
        if methods is None:
            return __self._call_function(__context, __obj, args, kwargs)
        name = __obj.__name__
        if name not in methods:
            raise SecurityError(f"a template may not call {name!r}")
        named = {key: value for key, value in kwargs.items() if key not in _OF_JINJA}
        check = methods[name]
        if name not in ONE_STEP:
            meter.spend(__self._size((owner, *args)))
        if check is not None:
            check(meter, owner, *args, **named)
        return meter.made(__obj(*args, **named))

    def _call_function(self, context: Context, function: Any, args: Any, kwargs: Any) -> Any:
        if type(function) is not Macro and not self._is_known(function):
            name = getattr(function, "__name__", type(function).__name__)
            raise SecurityError(f"a template may not call {name!r}")
        self.meter.spend(self._size((*args, *kwargs.values())))
        if type(function) is LoopContext and args:
            args = (self.counted(args[0]), *args[1:])
        result = context.call(function, *args, **kwargs)
        return result if type(result) is Namespace else self.meter.made(result)

    def _is_known(self, function: Any) -> bool:
        """Whether a function belongs to Jinja or was given to templates."""
        owner = getattr(function, "__self__", None)
        is_jinjas = isinstance(function, _FUNCTIONS) or isinstance(owner, _OWNERS)
        return is_jinjas or any(function is known for known in self.globals.values())

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See jinja2."""
        safe = super().wrap_str_format(value)
        return None if safe is None else _Format(self.meter, value.__self__, safe)

    def _size(self, values: Iterable[Any]) -> int:
        """How much there is to go through in all of `values`."""
        size = 0
        for value in values:
            if type(value) is str:
                size += len(value)
            elif isinstance(value, (str, list, tuple, dict)):
                size += self.meter.weight(value)
        return size

    def _metered(self, function: Callable[..., Any], check: Check | None) -> Callable[..., Any]:
        """A filter or a test that is counted; `check` is asked first."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.spend(self._size((*args[first:], *kwargs.values())))
            if check is not None:
                check(self.meter, *args[first:], **kwargs)
            return self.meter.made(function(*args, **kwargs))

        return metered

    def _to_json(self, value: Any, **options: Any) -> str:
        return as_json(self.meter, value, {"ensure_ascii": False} | options)


def _methods_of(owner: object) -> Mapping[str, Check | None] | None:
    """The methods of a value whose type is derived from one that is listed."""
    return next((METHODS[kind] for kind in type(owner).__mro__ if kind in METHODS), None)


class _Format:
    """`str.format` of one text, measured before it runs."""

    def __init__(self, meter: Meter, text: str, function: Callable[..., str]) -> None:
        self._meter, self._text, self._function = meter, text, function

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        check_format(self._meter, self._text, *args, **kwargs)
        return self._function(*args, **kwargs)


_FUNCTIONS = (Macro, LoopContext, Joiner, BlockReference, Undefined, _Format)
