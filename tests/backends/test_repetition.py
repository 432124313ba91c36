"""Loops are noticed, word for word and nearly so; what a good answer repeats is not."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.backends.repetition import RepetitionWatch
from tests.backends.answers import good
from tests.backends.answers.verse import DAYS, GIFTS

REFRAIN = "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.\n"
ANIMALS = {"cow": "moo", "pig": "oink", "duck": "quack", "horse": "neigh", "sheep": "baa", "dog": "woof"}
FRUITS = [
    "apple",
    "banana",
    "cherry",
    "date",
    "elderberry",
    "fig",
    "grape",
    "lemon",
    "mango",
    "nectarine",
    "orange",
    "papaya",
    "quince",
]


def stopped_at(text: str, step: int = 4) -> int | None:
    """Where the watch stops a text that comes in pieces; None where it lets it end."""
    watch = RepetitionWatch()
    return next((at for at in range(0, len(text), step) if watch.feed(text[at : at + step])), None)


def christmas() -> str:
    """A song that says all of its last verse again in the next."""
    verses = []
    for number, day in enumerate(DAYS, 1):
        gifts = ",\n".join(reversed(GIFTS[:number]))
        verses.append(f"On the {day} day of Christmas\nmy true love gave to me\n{gifts}.")
    return "\n\n".join(verses)


def farm() -> str:
    """A song whose verses differ in two words."""
    return "\n\n".join(
        f"Old MacDonald had a farm, E-I-E-I-O.\nAnd on that farm he had a {animal}, E-I-E-I-O.\n"
        f"With a {sound}-{sound} here, and a {sound}-{sound} there,\nHere a {sound}, there a {sound},"
        f" everywhere a {sound}-{sound}.\nOld MacDonald had a farm, E-I-E-I-O."
        for animal, sound in ANIMALS.items()
    )


def bottles() -> str:
    """A song that counts down."""
    return "\n".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer.\n"
        f"Take one down and pass it around, {n - 1} bottles of beer on the wall.\n"
        for n in range(99, 60, -1)
    )


LOOPS = {
    "a sentence": "I like eggs. " + "The egg is a great source of protein. " * 60,
    "a word": "Well, " + "very " * 300,
    "a list": "".join(f"{n}. Place the egg in the boiling water for five minutes.\n" for n in range(1, 40)),
    "steps": "".join(f"Step {n}: Add a cup of water to the bowl and stir it well.\n" for n in range(1, 60)),
    "a paragraph": ("The sea is wide. It is deep and blue, and nobody knows all that lives in it.\n\n" * 30),
    "Chinese": "水是生命之源，我们要爱护它。" * 40,
    "two lines in turn": "Q: What is it?\nA: It is a cat that sleeps.\n" * 40,
    "a list of one word": "Ten fruits:\n\n" + "".join(f"{n}. Berries\n" for n in range(1, 90)),
    "a list of two words in turn": "".join(
        f"{n}. {'Oranges' if n % 2 else 'Grapefruits'}\n" for n in range(1, 90)
    ),
    "a sentence late": "\n".join(f"{n} is a number that I like." for n in range(40))
    + "It's the ultimate goal of life. " * 9,
    "a line of a poem": "A language of the mind,\n" + "A language that is a language of the heart,\n" * 8,
    "code": "```python\n" + "print('hello')\n" * 150 + "```",
}
GOOD = {
    "a song three times": REFRAIN * 3,
    "a refrain between verses": "\n".join(
        f"Verse {n} of the {fruit}, new and bright, sings of the {FRUITS[-n]} at night.\n{REFRAIN}"
        for n, fruit in enumerate(FRUITS[:6], 1)
    ),
    "a song that grows": christmas(),
    "a song with two new words a verse": farm(),
    "a song that counts down": bottles(),
    "numbers from one to a thousand": "\n".join(map(str, range(1, 1001))),
    "a multiplication table": "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 11) for b in range(1, 11)),
    "a table with empty cells": "| | Mon | Tue | Wed | Thu | Fri |\n|---|---|---|---|---|---|\n"
    + "".join(f"| {hour}:00 |  |  |  |  |  |\n" for hour in range(8, 20)),
    "a table": "| fruit | colour |\n|---|---|\n" + "".join(f"| {fruit} | red |\n" for fruit in FRUITS * 2),
    "a matrix": "```python\nboard = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "]\n```",
    "a page of HTML": "```html\n<ul>\n"
    + "".join(f'  <li class="item"><a href="#">Item {n}</a></li>\n' for n in range(60))
    + "</ul>\n```",
    "a draft and what became of it": (bottles()[:250] + REFRAIN + farm()[:900] + "\n\nOnce more:\n\n") * 2,
    "a list with frames": "".join(f"- The {f} is a fruit. The {f} tastes good in a pie.\n" for f in FRUITS),
    "JSON": "```json\n"
    + "".join(f'{{"name": "{f}", "colour": "red", "price": {len(f)}}},\n' for f in FRUITS),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_noticed(name: str) -> None:
    at = stopped_at(LOOPS[name])
    assert at is not None
    assert at < 3000


@pytest.mark.parametrize("name", GOOD)
def test_what_a_good_answer_repeats_is_no_loop(name: str) -> None:
    assert stopped_at(GOOD[name]) is None


def test_a_long_passage_is_a_loop_once_it_has_come_twice_and_a_half() -> None:
    passage = " ".join(f"The {fruit} shaped the roads and the arts of its time." for fruit in FRUITS) + "\n\n"
    assert stopped_at(passage * 2) is None
    at = stopped_at(passage * 3)
    assert at is not None
    assert 2.4 < at / len(passage) < 2.8


def test_none_of_two_hundred_good_answers_is_stopped() -> None:
    assert len(good.GOOD) >= 200
    assert not {name: at for name, text in good.GOOD.items() if (at := stopped_at(text)) is not None}


def test_no_code_of_the_standard_library_is_a_loop() -> None:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    assert len(paths) > 20
    for path in paths:
        code = path.read_text(encoding="utf-8", errors="replace")[:4000]
        assert stopped_at(f"```python\n{code}\n```", 64) is None, path.name


@given(st.sampled_from(sorted(LOOPS)), st.integers(1, 50))
def test_it_does_not_depend_on_how_the_text_comes(name: str, step: int) -> None:
    at = stopped_at(LOOPS[name], step)
    assert at is not None
    expected = stopped_at(LOOPS[name], 1)
    assert expected is not None
    assert abs(at - expected) <= step


def test_a_loop_that_goes_on_is_stopped_again_only_after_another_stretch() -> None:
    loop = LOOPS["a sentence"]
    first = stopped_at(loop)
    assert first is not None
    again = stopped_at(loop[first:])
    assert again is not None
    assert again > 300
