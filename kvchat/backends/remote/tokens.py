"""A remote's conversation as token ids: the model's own tokenizer and template, here, once the server agrees with them.

Loads neither torch nor transformers, and no weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kvchat.backends.base import Encoded, Role, Turn, time_of
from kvchat.backends.remote.link import Link
from kvchat.backends.remote.server import Server, server_ids
from kvchat.config import Config
from kvchat.errors import ModelUnavailableError
from kvchat.models.text.reasoning import ReasoningMarks
from kvchat.models.text.template import ChatTemplate, Message
from kvchat.models.text.tokenizer import ChatTokenizer, load_tokenizer, read_template

FROM_SERVER = "server"
"""A remote's `tokenizer` that is to be found from what the server says of its model."""
_PROBES = (
    "Hello, world!  Two  spaces,\n\ttabs, 12345 and",
    " naïve façade — 你好，世界 🙂 e\u0301 \u00a0",
    "def f(x):\n    return x**2",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as it is sent: all its ids, of which the last are the unfinished answer's; what was newly encoded.

    `is_reasoning` says that the ids end inside a reasoning part.
    """

    ids: tuple[int, ...]
    unfinished: tuple[int, ...]
    encoded: tuple[Encoded, ...]
    is_reasoning: bool
    marks: ReasoningMarks | None


class Tokens:
    """The tokenizer and the chat template of a remote's model."""

    def __init__(self, tokenizer: ChatTokenizer, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.template = template
        eos = tokenizer.control.get(tokenizer.names.get("eos_token", ""))
        self.closing_ids = tuple(dict.fromkeys([*template.closing_ids, *([] if eos is None else [eos])]))

    @property
    def id(self) -> str:
        """What the ids belong to."""
        return self.tokenizer.id

    def prompt(self, turns: Sequence[Turn], think: bool | None) -> Prompt:
        """The ids of a conversation. Raises ModelUnavailableError where the template refuses it."""
        template = self.template.at(time_of(turns))
        messages = [self._message(turn) for turn in turns]
        return Prompt(
            tuple(template.prompt(messages, think=think)),
            tuple(template.unfinished(messages)),
            tuple(
                Encoded(turn.text, tuple(message.tokens))
                for turn, message in zip(turns, messages, strict=True)
                if message.tokens is not None and turn.tokens is not message.tokens
            ),
            template.opens_reasoning(messages, think=think),
            template.marks,
        )

    def retokenised(self, turns: Sequence[Turn], think: bool | None) -> tuple[int, ...]:
        """The ids that a server makes of the texts alone, as it does where they are sent as such."""
        texts = [replace(turn, tokens=None) for turn in turns]
        messages = [Message(str(turn.role), turn.text, turn.reasoning) for turn in texts]
        return tuple(self.template.at(time_of(turns)).prompt(messages, think=think))

    def _message(self, turn: Turn) -> Message:
        """A turn with its ids; an answer that has none of this tokenizer gets those of its text, as in a local model."""
        tokens: Sequence[int] | None = turn.tokens if turn.tokenizer == self.id else None
        if tokens is None and turn.role is Role.ASSISTANT and turn.text and not turn.reasoning:
            tokens = self.template.answer_ids(turn.text)
        return Message(turn.role.value, turn.text, turn.reasoning, tokens)


def load_tokens(server: Server, config: Config, notify: Callable[[str], None]) -> Tokens:
    """The tokenizer that a remote's settings name. Raises ModelUnavailableError."""
    name = server.target.remote.tokenizer or FROM_SERVER
    with TemporaryDirectory(prefix="kvchat-") as scratch:
        folder = _folder(server, name, config, Path(scratch))
        if not (folder / "tokenizer.json").is_file():  # what else there is takes transformers, and so torch
            raise ModelUnavailableError(f"{folder} has no tokenizer.json", "name another tokenizer")
        named = config.model.chat_template
        source = read_template(folder, Path(named) if named else None) or server.template
        if not source:
            remedy = "give one with --chat-template FILE"
            raise ModelUnavailableError(f"the tokenizer {name} comes without a chat template", remedy)
        tokenizer = load_tokenizer(folder, control_text=source)
        return Tokens(tokenizer, ChatTemplate(source, tokenizer, notify=notify))


def disagreement(tokens: Tokens, server: Server, link: Link) -> str | None:
    """Why ids of this tokenizer are not to be sent: a text that the server cuts otherwise; None where it cuts them alike.

    A server that can't be asked is taken at the user's word.
    """
    control = [name for name in tokens.tokenizer.control if not name.isspace()][:4]
    for text in (*_PROBES, *control):
        theirs = server_ids(text, server, link)
        if theirs is None:
            return None
        ours = tokens.tokenizer.encode(text, is_start=True)
        if theirs != ours and theirs != tokens.tokenizer.encode(text):
            return f"the server cuts {text[:20]!r} into {len(theirs)} tokens, and this tokenizer into {len(ours)}"
    return None


def _folder(server: Server, name: str, config: Config, scratch: Path) -> Path:
    """A folder with the tokenizer's files: one that is here, a GGUF's, or the hub's. Raises ModelUnavailableError."""
    from kvchat.models.sources.catalog import Catalog
    from kvchat.models.sources.hub import Hub, HubName

    if name == FROM_SERVER:
        name = server.model.source or server.model.id
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _unpacked(path, scratch)
    if path.is_dir():
        return path
    found = Catalog(config.paths.models, offline=True).find(name)
    if found is not None:
        return found.folder
    hub_name = HubName.parse(name)
    if hub_name is None or config.model.offline:
        remedy = "set tokenizer to a folder, a .gguf file or a hub id that has the same tokenizer"
        raise ModelUnavailableError(f"no tokenizer is found under {name[:120]!r}", remedy)
    return Hub(config.paths.models / "hub").fetch_tokenizer(hub_name)


def _unpacked(path: Path, scratch: Path) -> Path:
    """The tokenizer of a GGUF file, as a model's folder has it."""
    from kvchat.models.gguf.parts import read_gguf
    from kvchat.models.gguf.tokenizer import build_tokenizer, tokenizer_settings

    gguf = read_gguf(path)
    build_tokenizer(gguf).save(str(scratch / "tokenizer.json"))
    (scratch / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings(gguf)), encoding="utf-8")
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (scratch / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return scratch
