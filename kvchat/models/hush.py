"""Keeps transformers from writing on the terminal: what it has to say of a model is said by us, in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed_transformers() -> Iterator[None]:
    """Nothing that transformers logs, draws or warns of while it is imported and used inside is shown."""
    library = logging.getLogger("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        library.handlers.clear()
        library.addHandler(logging.NullHandler())
        library.propagate = False
        library.setLevel(logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
        yield
