"""All good answers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.backends.answers import data, papers, talk, verse

SHAPES: tuple[Callable[[], Iterator[str]], ...] = (
    verse.refrains, verse.nursery, verse.countdowns, verse.poems,
    data.tables, data.records, data.programs, data.drawings, data.sums,
    talk.translations, talk.lists, talk.quizzes, talk.games, talk.dialogues, talk.letters, talk.lessons,
    papers.speeches, papers.plans, papers.formulas, papers.references,
)  # fmt: skip
GOOD = {f"{shape.__name__} {number}": text for shape in SHAPES for number, text in enumerate(shape(), 1)}
