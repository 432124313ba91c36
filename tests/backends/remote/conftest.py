from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvchat.models.sources.catalog import Catalog
from kvchat.models.sources.embedded import SMOLLM2
from tests.backends.remote.servers import llama_server
from tests.test_embedded_model import MODELS


@pytest.fixture(scope="session")
def llama_url() -> Iterator[str]:
    """llama-server with the embedded model, started once."""
    Catalog(MODELS).resolve(SMOLLM2.name)  # fetched where it is not there yet
    with llama_server(MODELS / SMOLLM2.name / SMOLLM2.gguf_name) as url:
        yield url
