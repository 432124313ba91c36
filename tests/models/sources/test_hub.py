"""The hub: only what is needed, once, and every way it refuses in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from kvchat.errors import ModelUnavailableError
from kvchat.models.sources.catalog import Catalog, Origin, silent
from kvchat.models.sources.hub import Hub, HubName
from tests.models.hub_server import COMMIT, HubServer
from tests.models.isolated import catalog, refusal


def test_a_hub_model_is_fetched_once_with_only_what_is_needed(
    root: Path, hub_server: HubServer, tiny_folder: Path
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    hub_server.repositories["org/tiny"] |= {
        "pytorch_model.bin": b"no",
        "onnx/model.onnx": b"no",
        "README.md": b"no",
    }
    files = catalog(root, endpoint=hub_server.url).resolve("org/tiny")
    assert (files.origin, files.revision) == (Origin.HUB, COMMIT)
    assert {path.name for path in files.folder.iterdir()} == {path.name for path in tiny_folder.iterdir()}
    num_requests = len(hub_server.requests)
    assert catalog(root, endpoint=hub_server.url).resolve("org/tiny") == files
    assert catalog(root, offline=True).resolve("org/tiny") == files
    assert len(hub_server.requests) == num_requests
    AutoModelForCausalLM.from_pretrained(files.folder)


def test_progress_of_a_hub_download_is_reported_in_bytes(
    root: Path, hub_server: HubServer, tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    seen: list[tuple[str, int, int]] = []
    hub = Hub(root / "hub", endpoint=hub_server.url, shared_cache=root.parent / "shared")
    Catalog(root, progress=lambda *report: seen.append(report), hub=hub).resolve("org/tiny")
    weights = (tiny_folder / "model.safetensors").stat().st_size
    assert max(done for _, done, _ in seen) >= weights
    assert capfd.readouterr() == ("", "")


def test_a_revision_of_a_hub_model_is_its_own(root: Path, hub_server: HubServer, tiny_folder: Path) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    hub = catalog(root, endpoint=hub_server.url)
    assert hub.resolve("org/tiny@v1").name == "org/tiny@v1"
    assert hub.find(f"org/tiny@{COMMIT}") is not None
    assert hub.find("org/tiny@v2") is None


def test_a_model_in_the_hubs_own_cache_is_used_where_it_lies(
    root: Path, hub_server: HubServer, tiny_folder: Path
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    Hub(root.parent / "shared", endpoint=hub_server.url).fetch(HubName("org/tiny"), silent)
    files = catalog(root, offline=True).resolve("org/tiny")
    assert files.folder.is_relative_to(root.parent / "shared")
    with pytest.raises(ModelUnavailableError, match="not here"):
        catalog(root).remove("org/tiny")
    assert files.folder.exists()


def test_a_hub_model_is_listed_and_removed(root: Path, hub_server: HubServer, tiny_folder: Path) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    folder = catalog(root, endpoint=hub_server.url).resolve("org/tiny").folder
    entry = catalog(root).entries()[1]
    assert (entry.name, entry.origin, entry.folder) == ("org/tiny", Origin.HUB, folder)
    assert entry.num_bytes >= (tiny_folder / "model.safetensors").stat().st_size
    assert catalog(root).remove("org/tiny") == entry.num_bytes
    assert not folder.exists() and len(catalog(root).entries()) == 1


def test_a_half_fetched_hub_model_is_fetched_to_its_end(
    root: Path, hub_server: HubServer, tiny_folder: Path
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    files = catalog(root, endpoint=hub_server.url).resolve("org/tiny")
    (files.folder / "model.safetensors").unlink()
    assert catalog(root).find("org/tiny") is None
    assert catalog(root, endpoint=hub_server.url).resolve("org/tiny") == files


@pytest.mark.parametrize(
    ("refused", "name", "said"),
    [
        ((404, "RepoNotFound"), "org/tiny", "the hub has no model org/tiny.* check its spelling"),
        ((401, "RepoNotFound"), "org/tiny", "or does not show it to you.*hf auth login"),
        (
            (403, "GatedRepo"),
            "org/tiny",
            "is gated: accept its terms at https://huggingface.co/org/tiny, then `hf auth",
        ),
        ((401, "GatedRepo"), "org/tiny", "is gated"),
        ((500, ""), "org/tiny", "the hub refuses org/tiny .*500.*try again"),
        ((403, ""), "org/tiny", "the hub refuses org/tiny .*403.*hf auth login"),
        (None, "org/tiny@nope", "org/tiny has no revision 'nope'"),
        (None, "org/other", "the hub has no model org/other"),
    ],
)
def test_each_way_the_hub_refuses_is_one_line_with_its_remedy(
    root: Path,
    hub_server: HubServer,
    tiny_folder: Path,
    refused: tuple[int, str] | None,
    name: str,
    said: str,
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    if refused:
        hub_server.refused["org/tiny"] = refused
    with pytest.raises(ModelUnavailableError, match=said) as caught:
        catalog(root, endpoint=hub_server.url).resolve(name)
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_no_network_is_one_line_with_its_remedy(root: Path) -> None:
    assert "check the network" in refusal(root, "org/tiny")


def test_offline_never_asks_the_hub(root: Path, hub_server: HubServer) -> None:
    with pytest.raises(ModelUnavailableError, match="--offline"):
        catalog(root, offline=True, endpoint=hub_server.url).resolve("org/tiny")
    assert not hub_server.requests


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.gguf", "config.json"], "download one of its .gguf files"),
        (["pytorch_model.bin", "config.json"], "holds no "),
        (["unet/model.safetensors", "config.json"], "holds no "),
        (["adapter_model.safetensors", "tokenizer.json"], "has no config.json: choose a chat model"),
        (["model.safetensors", "config.json"], "has no tokenizer.json"),
    ],
)
def test_a_repository_that_is_no_chat_model_is_refused_before_anything_is_fetched(
    root: Path, hub_server: HubServer, files: list[str], said: str
) -> None:
    hub_server.repositories["org/tiny"] = dict.fromkeys(files, b"{}")
    with pytest.raises(ModelUnavailableError, match=said):
        catalog(root, endpoint=hub_server.url).resolve("org/tiny")
    assert not any("resolve" in request for request in hub_server.requests)
    assert not (root / "hub").exists()
