"""What the bounded sandbox makes of ordinary templates is what Jinja makes of them; and every filter has its row."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS

from kvchat.sandbox.environment import BoundedEnvironment
from kvchat.sandbox.meter import Meter, OverLimit
from kvchat.sandbox.operations import CHECKED_FILTERS, FREE_FILTERS, ONE_STEP

VALUES = {
    "words": ["fox", "dog", "a&b"],
    "text": " the <quick> fox ",
    "number": 7,
    "row": {"b": 1, "a": [2, 3]},
}
HARMLESS = (
    "{% for word in words %}{{ loop.index }}{{ word }}{{ loop.last }}{{ loop.nextitem }}{{ loop.length }}{% endfor %}",
    "{% for a in range(200) if a is odd %}{{ a }}{{ loop.revindex }}{% else %}x{% endfor %}",
    "{% for a, b in row.items() %}{{ a ~ b }}{% endfor %}{{ row.b }}{{ row['a'][0] }}{{ row.get('c', 5) }}{{ row.c }}",
    "{{ text | trim }}{{ text.strip()[1:-1] }}{{ text[::-1] }}{{ text.split('<')[0] }}{{ 'quick' in text }}",
    "{{ words | join(', ') }}{{ words | map('upper') | list }}{{ words | first }}{{ words | length }}",
    "{{ words[1:] }}{{ words + ['x'] }}{{ [1, 2] * 2 }}{{ (1, 2) }}{{ {'a': words} }}{{ -number }}",
    "{{ number % 2 }}{{ number ** 2 }}{{ number // 2 }}{{ '%s and %03d' % ('a', number) }}{{ '%s' | format(number) }}",
    "{{ '{} {:>5}'.format('a', number) }}{{ '{a}'.format_map({'a': 1}) }}{{ 'a'.center(9) }}{{ 'a' | center(9) }}",
    "{% set ns = namespace(a=1) %}{% for w in words %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% macro m(a, b=2) %}[{{ a }}{{ b }}{{ varargs }}{{ caller() if caller }}]{% endmacro %}{{ m(1, 2, 3) }}"
    "{% call m(1) %}x{% endcall %}",
    "{% set a %}{{ text }}!{% endset %}{{ a | upper }}{% filter lower %}ABC{{ text }}{% endfilter %}",
    "{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "{% autoescape true %}{{ text }}{{ text ~ text }}{{ text | safe }}{% endautoescape %}{{ text | e }}",
    "{{ words | batch(2) | list }}{{ [3, 1, 2] | sort | string }}{{ [1, 2] | sum }}{{ 'a,b'.replace(',', ';') }}",
    "{{ text | replace('q', 'k') | indent(2, true) | title }}{{ 3.7 | round }}{{ words | select('equalto', 'fox') | list }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}{{ dict(a=1) }}",
    "{% if words == ['fox'] or number >= 7 and 'x' not in words %}yes{% endif %}{{ 'a' if number is divisibleby 7 }}",
    "{% block body %}{{ self.title() }}{% endblock %}{% block title %}t{% endblock %}{{ none }}{{ missing }}{{ true }}",
)


def both(source: str, **values: object) -> tuple[str, str]:
    """What the sandbox and what plain Jinja makes of it."""
    environment = BoundedEnvironment()
    environment.meter.start()
    given = VALUES | values
    return environment.from_string(source).render(given), Environment().from_string(source).render(given)


@pytest.mark.parametrize("source", HARMLESS)
def test_an_ordinary_template_gives_what_jinja_gives(source: str) -> None:
    ours, plain = both(source)
    assert ours == plain
    assert ours


def test_every_filter_of_jinjas_has_its_row() -> None:
    assert set(FILTERS) == FREE_FILTERS | set(CHECKED_FILTERS) | (ONE_STEP & set(FILTERS))
    assert not FREE_FILTERS & set(CHECKED_FILTERS)


@given(
    st.integers(-9, 9), st.integers(0, 9), st.sampled_from(["+", "-", "*", "//", "%", "**", "~", "==", "<"])
)
def test_numbers_are_computed_as_they_are(left: int, right: int, sign: str) -> None:
    ours, plain = both("{{ a " + sign + " (b + 1) }}", a=left, b=right)
    assert ours == plain


@settings(deadline=None)
@given(st.recursive(st.text(max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=30))
def test_a_value_weighs_at_least_what_is_written_of_it(value: object) -> None:
    assert Meter().weight(value) >= len(str(value)) // 4
    assert Meter().weight([value, value]) >= 2 * Meter().weight(value)


def test_what_stands_in_a_list_twice_weighs_twice_however_deep() -> None:
    value: list[object] = [1]
    meter = Meter()
    with pytest.raises(OverLimit, match="too large"):
        for _ in range(60):
            value = [value, value]
            meter.made(value)


def test_a_long_conversation_is_given_more_room() -> None:
    meter = Meter()
    meter.start(given=10_000_000)
    assert meter.made("x" * 20_000_000)
    meter.start()
    with pytest.raises(OverLimit):
        meter.made("x" * 20_000_000)


@pytest.mark.parametrize(
    "source", ["{{ 'a'.encode() }}", "{{ helper() }}", "{{ when.replace(year=1) }}", "{{ words.append(1) }}"]
)
def test_only_what_is_listed_may_be_called(source: str) -> None:
    with pytest.raises(SecurityError):
        both(source, helper=print, when=datetime(2026, 1, 2))


def test_a_date_may_be_written_in_a_form() -> None:
    ours, plain = both("{{ when.strftime('%Y') }}{{ when.isoformat() }}", when=datetime(2026, 1, 2))
    assert ours == plain


def test_renderings_share_what_time_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("kvchat.sandbox.meter.time", SimpleNamespace(thread_time=lambda: now_s))
    meter = Meter()

    def render(seconds: float) -> None:
        nonlocal now_s
        meter.start()
        now_s += seconds
        for _ in range(300):
            meter.spend()

    for _ in range(100):
        render(0.09)
    render(1.5)
    with pytest.raises(OverLimit, match="takes more than"):
        render(0.7)
    for _ in range(20):
        render(0.0)
    render(1.9)
