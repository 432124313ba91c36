"""Speeches, plans, formulas and references: entry after entry of one form."""

from __future__ import annotations

from collections.abc import Iterator

from tests.backends.answers.talk import FRUITS, WEEK, WORDS


def speeches() -> Iterator[str]:
    """Promises, toasts, prayers and vows: sentence after sentence begins alike."""
    for number, who in enumerate(("I", "We", "They", "She", "He")):
        yield " ".join(
            f"{who} will remember the {w}, and {who.lower() if who != 'I' else who} will not forget what the {w} was."
            for w in WORDS
        )
        yield "\n".join(
            f"{who} had a {w} when {who.lower() if who != 'I' else who} came here. {who} had nothing else but that {w}."
            for w in list(WORDS)[number:]
        )


def plans() -> Iterator[str]:
    """Weeks, menus, packing lists, study plans, minutes: the same headings under each day."""
    for number in range(10):
        yield "\n\n".join(
            f"**{day}**\n\n- Morning: {FRUITS[(number + at) % 14]} and tea\n- Noon: a walk to the {list(WORDS)[(number + at) % 15]}\n"
            "- Evening: read for 20 minutes, lights out at 10 pm\n- Remember to drink enough water"
            for at, day in enumerate(WEEK[: 5 + number % 3])
        )


def formulas() -> Iterator[str]:
    """Mathematics in LaTeX, in Unicode and in words: derivations whose lines change a little."""
    for n in range(2, 7):
        yield "\n".join(
            rf"\[ \int x^{{{k}}} \, dx = \frac{{x^{{{k + 1}}}}}{{{k + 1}}} + C \]" for k in range(n, n + 15)
        )
        yield "\n".join(f"({n}x + {k})² = {n * n}x² + {2 * n * k}x + {k * k}" for k in range(1, 25))


def references() -> Iterator[str]:
    """Bibliographies, glossaries, addresses, links: entry after entry of one form."""
    for number in range(5):
        yield "\n".join(
            f"@book{{{w}{1990 + number},\n  author = {{Smith, John}},\n  title = {{The {w.capitalize()}}},\n  publisher = {{Penguin}},\n  year = {{{1990 + number}}}\n}}"
            for w in list(WORDS)[: 8 + number]
        )
        yield "\n".join(
            f"- [{w.capitalize()}](https://example.org/articles/{1990 + number}/{w}.html), read on {number + 1} May"
            for w in WORDS
        )
