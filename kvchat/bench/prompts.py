"""English text as token ids of the model, without loading the model."""

from __future__ import annotations

from kvchat.bench.measure import english
from kvchat.config import Config
from kvchat.models.sources.catalog import Catalog
from kvchat.models.text.tokenizer import ChatTokenizer, load_tokenizer


def token_ids(config: Config, num_tokens: int, *, skip: int = 0) -> list[int]:
    """`num_tokens` ids of English text; `skip` begins elsewhere in it. Raises UsageError if the text is too short."""
    tokenizer = tokenizer_of(config)
    return list(tokenizer.encode(english(num_tokens + 8, tokenizer.count, skip=skip)))[:num_tokens]


def tokenizer_of(config: Config) -> ChatTokenizer:
    """The model's tokenizer."""
    wanted = config.model
    files = Catalog(config.paths.models, offline=wanted.offline).resolve(wanted.name, needs_template=False)
    return load_tokenizer(files.folder)
