"""Models of the Hugging Face hub: what is here, and fetching what is not. Loads huggingface_hub only to fetch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.errors import ModelUnavailableError
from kvchat.models.progress import Progress
from kvchat.models.sources.folder import TOKENIZER_FILES, check_folder

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_MAIN = "main"
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.py")
_UNWANTED = ("*/*", "consolidated*.safetensors", "*.fp16.safetensors", "*.fp32.safetensors")
_TRY_AGAIN = "check the network and try again"


@dataclass(frozen=True, slots=True)
class HubName:
    """`org/name` or `org/name@revision`. A revision is a branch, a tag or a commit."""

    repo: str
    revision: str = _MAIN

    @classmethod
    def parse(cls, name: str) -> HubName | None:
        """The hub's reading of a name; None when it can't be one."""
        match = _NAME.fullmatch(name)
        return cls(match["repo"], match["revision"] or _MAIN) if match else None

    @property
    def cache_name(self) -> str:
        """The folder that the hub's cache layout keeps this repository in."""
        return "models--" + self.repo.replace("/", "--")

    def __str__(self) -> str:
        return self.repo if self.revision == _MAIN else f"{self.repo}@{self.revision}"


class Hub:
    """Downloads go to `folder`, laid out as the hub's own cache; that cache is looked at too, and never changed.

    `endpoint` and `shared_cache` None mean the hub's own settings.
    """

    def __init__(
        self, folder: Path, *, endpoint: str | None = None, shared_cache: Path | None = None
    ) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._shared_cache = shared_cache

    def find(self, name: HubName, *, own_only: bool = False) -> Path | None:
        """The whole snapshot of a model on this disk, or None."""
        for cache in self._caches(own_only):
            snapshot = _snapshot(cache / name.cache_name, name.revision)
            if snapshot is not None and _is_model(snapshot):
                return snapshot
        return None

    def fetch(self, name: HubName, progress: Progress) -> Path:
        """Bring a model here, or what is new of it. Raises ModelUnavailableError with what to do about it."""
        from huggingface_hub import snapshot_download

        with _explained(name):
            self._check_listing(name)
            folder = snapshot_download(
                name.repo,
                revision=name.revision,
                cache_dir=self._folder,
                endpoint=self._endpoint,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
                tqdm_class=_reporting_bar(progress),
            )
        check_folder(Path(folder))
        return Path(folder)

    def names(self) -> list[str]:
        """The repositories that were fetched into our folder."""
        folders = sorted(self._folder.glob("models--*--*"))
        return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]

    def homes(self, name: HubName) -> list[Path]:
        """Our folders of a repository, all its revisions together; the hub's own cache is not among them."""
        return [self._folder / name.cache_name, self._folder / ".locks" / name.cache_name]

    def _caches(self, own_only: bool) -> Iterator[Path]:
        yield self._folder
        if own_only:
            return
        if self._shared_cache is not None:
            yield self._shared_cache
        else:
            from huggingface_hub import constants

            yield Path(constants.HF_HUB_CACHE)

    def _check_listing(self, name: HubName) -> None:
        """Refuse a repository that is no model for us before any byte of it is fetched."""
        from huggingface_hub import HfApi

        info = HfApi(endpoint=self._endpoint).model_info(name.repo, revision=name.revision)
        files = {item.rfilename for item in info.siblings or []}
        if not any(file.endswith(".safetensors") and "/" not in file for file in files):
            remedy = "choose a model that has them"
            if any(file.endswith(".gguf") for file in files):
                remedy = "download one of its .gguf files and pass its path with -m"
            raise ModelUnavailableError(f"{name} holds no *.safetensors", remedy)
        for needed in (("config.json",), TOKENIZER_FILES):
            if files.isdisjoint(needed):
                raise ModelUnavailableError(f"{name} has no {needed[0]}", "choose a chat model")


def _snapshot(repository: Path, revision: str) -> Path | None:
    """The folder of a revision in a repository of the hub's cache layout."""
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = repository / "snapshots" / commit
    return snapshot if "/" not in commit and snapshot.is_dir() else None


def _is_model(folder: Path) -> bool:
    try:
        check_folder(folder)
    except ModelUnavailableError:
        return False
    return True


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn what the hub's library raises into one line with its remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        remedy = f"accept its terms at https://huggingface.co/{name.repo}, then `hf auth login`"
        raise ModelUnavailableError(f"{name} is gated", remedy) from error
    except errors.RevisionNotFoundError as error:
        raise ModelUnavailableError(
            f"{name.repo} has no revision {name.revision!r}", "see its page"
        ) from error
    except errors.RepositoryNotFoundError as error:
        remedy = "check its spelling; if it is private, `hf auth login`"
        raise ModelUnavailableError(
            f"the hub has no model {name.repo}, or does not show it to you", remedy
        ) from error
    except errors.HFValidationError as error:
        raise ModelUnavailableError(f"{name} is no name of the hub's", "write it as org/name") from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelUnavailableError(f"{name} is not here and HF_HUB_OFFLINE is set", "unset it") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        remedy = "`hf auth login`" if status in (401, 403) else _TRY_AGAIN
        raise ModelUnavailableError(f"the hub refuses {name} ({_first_line(error)})", remedy) from error
    except (OSError, errors.LocalEntryNotFoundError, errors.XetDownloadError) as error:
        raise ModelUnavailableError(f"can't fetch {name} ({_first_line(error)})", _TRY_AGAIN) from error
    except ModelUnavailableError:
        raise
    except Exception as error:  # the transport's own errors, whichever the hub's library uses
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise ModelUnavailableError(
            f"can't reach the hub for {name} ({_first_line(error)})", _TRY_AGAIN
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _reporting_bar(progress: Progress) -> type[Any]:
    """A bar of the hub's library that shows nothing and reports bytes to us."""
    import io

    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if self.unit == "B" and self.total:
                progress("downloading", int(self.n), int(self.total))
            return shown

    return Bar
