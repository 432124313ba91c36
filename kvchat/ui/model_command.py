"""What `/model` does: the model that answers, those on this disk, and another one in its place. Knows no screen."""

from __future__ import annotations

import os

from kvchat.backends.base import Backend, Phase
from kvchat.errors import EngineDiedError, KvchatError, UntrustedCodeError
from kvchat.ui.cost import cost_line
from kvchat.ui.desk import Choice, Desk
from kvchat.ui.figures import size_text
from kvchat.ui.render import promise_text, reuse_text, template_text, weights_text

_TRUSTING = " --trust-remote-code"


def run_model(desk: Desk, argument: str) -> str:
    """Say which model answers and offer the others, or load another one and go on with it."""
    session = desk.session
    if not argument:
        name = session.model or session.backend.info().name
        _offer_models(desk, name)
        return _lines(f"{name} answers; /model NAME changes that", *_facts(session.backend))
    if argument.endswith(_TRUSTING):
        argument = argument.removesuffix(_TRUSTING).strip()
        desk.surroundings.trust_code(argument)
    backend = desk.surroundings.open_model(argument)
    desk.show_loading(backend)
    try:
        backend.start()
        backend.info()
    except UntrustedCodeError as error:
        backend.close()
        choice = Choice(
            "trust it from now on: it runs with all of your rights", f"/model {argument}{_TRUSTING}"
        )
        desk.offer(f"{error.message}: (Enter takes it, Esc leaves)", [choice])
        return f"{error.message}; {session.model or 'the model before'} stays until you say that you trust it"
    except BaseException as error:
        is_given_up = isinstance(error, EngineDiedError) and backend.status().phase is Phase.CLOSED
        backend.close()
        if is_given_up:
            raise KvchatError(
                f"loading {argument} was cancelled", f"{session.model} answers as before"
            ) from None
        raise
    finally:
        desk.show_loading(None)
    session.change_model(argument, backend)
    return _lines(f"{argument} answers from now on", cost_line(session))


def _offer_models(desk: Desk, current: str) -> None:
    """The models on this disk as a list, where there is another one."""
    rows = desk.surroundings.models()
    if all(row.name == current for row in rows):
        return
    labels = [f"{row.label} (this one)" if row.name == current else row.label for row in rows]
    facts = [
        " · ".join(part for part in (label, _size(row.num_bytes), row.program) if part)
        for label, row in zip(labels, rows, strict=True)
    ]
    choices = [Choice(fact, f"/model {row.name}") for fact, row in zip(facts, rows, strict=True)]
    at = next((place for place, row in enumerate(rows) if row.name == current), 0)
    desk.offer("models on this disk: (Enter loads it, Esc leaves)", choices, at)


def _size(num_bytes: int) -> str:
    """A model's size, and whether its weights have room in this machine's memory."""
    if not num_bytes:
        return "not fetched yet"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return size_text(num_bytes) + (", more than this machine's memory" if num_bytes > memory else "")


def _facts(backend: Backend) -> list[str]:
    """Its adapter, what its chat template does to the past, what of that is reused and from what it decodes, once that
    is known."""
    if backend.status().phase in (Phase.STARTING, Phase.LOADING, Phase.FAILED):
        return []
    info = backend.info()
    adapter = f"with the adapter {info.adapter}" if info.adapter else ""
    return [
        adapter,
        f"its chat template {template_text(info.template)}",
        reuse_text(info),
        promise_text(info),
        weights_text(info),
    ]


def _lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)
