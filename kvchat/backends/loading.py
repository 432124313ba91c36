"""Settings -> a loaded model with its tokenizer, template and cache, ready to answer. Knows no conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvchat.backends.base import Keeping, ModelInfo, Options, Phase, Status
from kvchat.backends.messages import Messages
from kvchat.backends.report import Asked
from kvchat.cache.base import CacheSettings
from kvchat.cache.folder import make_private_folder
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.config import Config, ModelConfig
from kvchat.engine.ahead import Pulse
from kvchat.engine.engine import Engine
from kvchat.engine.sequence import LiveSequence
from kvchat.errors import ModelUnavailableError, OutOfMemoryError, PassingError, reason_of
from kvchat.models.arithmetic import arithmetic
from kvchat.models.device import is_out_of_memory
from kvchat.models.documents import boundary
from kvchat.models.fingerprint import fingerprint
from kvchat.models.generation import not_done
from kvchat.models.kinds import GrowingIds
from kvchat.models.loaded import PAGE_TOKENS, LoadedModel
from kvchat.models.loader import Origins, load_model
from kvchat.models.numbers import check_numbers
from kvchat.models.probe import Verdict, checked
from kvchat.models.progress import Progress
from kvchat.models.sources.catalog import Catalog, ModelFiles
from kvchat.models.sources.contents import Contents
from kvchat.models.text.template import ChatTemplate
from kvchat.models.text.template_kind import kind_of
from kvchat.models.text.tokenizer import ChatTokenizer, load_tokenizer, read_template
from kvchat.trust import Kind, Trust

Show = Callable[[Status], None]
"""Is told what is going on."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What was computed since the last answer while nobody waited."""

    tokens: int = 0
    seconds: float = 0.0

    def plus(self, tokens: int, seconds: float) -> Idle:
        """With some more."""
        return Idle(self.tokens + tokens, self.seconds + seconds)


@dataclass(frozen=True, slots=True)
class Typed:
    """What was computed since the last answer for messages that were being typed: tokens of prompts and of answers, and
    how many of them an answer `used`; the seconds that took, and those that nobody had to wait for therefore."""

    tokens: int = 0
    used: int = 0
    seconds: float = 0.0
    saved_s: float = 0.0

    def plus(self, *, tokens: int = 0, used: int = 0, seconds: float = 0.0, saved_s: float = 0.0) -> Typed:
        """With some more."""
        return Typed(self.tokens + tokens, self.used + used, self.seconds + seconds, self.saved_s + saved_s)


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """Everything that one model needs to answer, whatever the conversation."""

    engine: Engine
    tokenizer: ChatTokenizer
    template: ChatTemplate
    info: ModelInfo
    ready_at: float
    is_shared: bool = False
    messages: Messages = field(default_factory=Messages)
    ids: GrowingIds = field(default_factory=GrowingIds)

    def stores(self, keeping: Keeping) -> bool:
        """Whether what a call computes is given to the cache; one in RAM alone is as private, unless it `is_shared`."""
        settings = self.engine.cache.settings if self.engine.cache else CacheSettings()
        is_private = not (self.is_shared or settings.disk_bytes or settings.further)
        return keeping.mode == "rw" and (keeping.saves or is_private)


@dataclass(slots=True)
class Talk:
    """What is live of one conversation with a model; `last` is what was computed last in it, `unsent` what is there for
    a message that is not sent yet (`ahead.Unsent`, or None)."""

    model: ReadyModel
    sequence: LiveSequence
    last: Asked | None = None
    idle: Idle = Idle()
    typed: Typed = Typed()
    unsent: object = None
    pulse: Pulse = field(default_factory=Pulse)


def load(config: Config, show: Show, warn: Callable[[str], None]) -> Talk:
    """Load the model of `config`, for a first conversation; `warn` takes warnings. Raises KvchatError."""
    try:
        return _loaded(config, show, warn)
    except OSError as error:
        name = config.model.name
        raise PassingError(f"{name} can't be loaded now: {reason_of(error)}", "ask again") from error


def _loaded(config: Config, show: Show, warn: Callable[[str], None]) -> Talk:
    started = time.perf_counter()
    with suppress(OSError):  # where it can't be written, what is remembered of models is found out each time
        make_private_folder(config.paths.models)

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        show(Status(Phase.LOADING, stage, done, total))

    files = _find_files(config, progress)
    progress(f"loading {files.name}")
    wanted = trusting_settings(config, files.folder)
    origin = Origins(files.gguf, config.paths.models, progress)
    model = _suited(load_model(files.folder, wanted, name=files.name, origin=origin), files)
    template = _template(files, wanted, warn)
    model = _with_end_of(model, template.tokenizer)
    if undone := not_done(model.generation_defaults, model.context):
        warn(
            f"{files.name}: its generation_config.json asks for {', '.join(undone)}, which kvchat does not do"
        )
    trial = _Trial(config, files, model)
    progress("checking what can be reused")
    verdict = trial.passed(warn)
    engine = trial.engine
    engine.cache = _open_cache(config, engine, trial.mark, warn)
    engine.pace.keep_in(engine.cache)
    ready_at = time.perf_counter()
    info = _describe(engine, template, load_ms=(ready_at - started) * 1e3)
    info = replace(info, verdict=str(verdict))
    return Talk(ReadyModel(engine, template.tokenizer, template, info, ready_at), trial.sequence)


def _suited(model: LoadedModel, files: ModelFiles) -> LoadedModel:
    """The model with what suits it where it says nothing itself."""
    return replace(model, generation_defaults={**files.generation, **model.generation_defaults})


class _Trial:
    """A model on trial: run in the way that it is declared to allow, and in weaker ones until it keeps its promise."""

    def __init__(self, config: Config, files: ModelFiles, model: LoadedModel) -> None:
        self._config = config
        self._files = files
        self._begin(model)

    def passed(self, warn: Callable[[str], None]) -> Verdict:
        """What was found; the engine runs the model in the way that is right."""
        verdict = self._checked()
        if verdict.is_exact is False and self._model.page == 1:
            # in pages, whose products never change their sizes
            self._begin(replace(self._model, page=PAGE_TOKENS))
            verdict = self._checked()
        if not verdict.is_as_declared:
            check_numbers(self._model)  # where there are none, nothing is wrong with what is reused
            warn(f"{self._files.name}: {verdict}")
        if verdict.is_exact is False or not verdict.is_as_declared:
            self._begin(replace(self._model, rule=verdict.rule, is_exact=False, page=1))
        return verdict

    def _begin(self, model: LoadedModel) -> None:
        self._model = model
        with _able_to_run(model):
            self.engine = Engine(model, draft=self._config.model.draft)
            self.sequence = self.engine.new_sequence()
        self.mark = _fingerprint(self._config, model, self._files)

    def _checked(self) -> Verdict:
        def measured() -> Callable[[int], float]:
            self.engine.warm_up(self.sequence)
            return self.engine.pace.forward_s

        with _able_to_run(self._model):
            return checked(self._model, self.mark, self._config.paths.models, measured)


def _template(files: ModelFiles, wanted: ModelConfig, warn: Callable[[str], None]) -> ChatTemplate:
    source = read_template(files.folder, Path(wanted.chat_template) if wanted.chat_template else None)
    if source is None:
        raise ModelUnavailableError(
            f"{files.name} has no chat template", "give one with --chat-template FILE"
        )
    return ChatTemplate(source, load_tokenizer(files.folder, control_text=source), notify=warn)


@contextmanager
def _able_to_run(model: LoadedModel) -> Iterator[None]:
    """Raise OutOfMemoryError where the machine does not even promise memory for the model's whole context, and
    ModelUnavailableError where its modules fail at the first tokens: its config is not made for them."""
    with boundary(f"{model.name} can't be run", "fetch it again, or take another model"):
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OutOfMemoryError) or is_out_of_memory(error)):
                raise
            raise OutOfMemoryError(
                f"there is no memory for the KV of the {model.context} tokens that {model.name} can read",
                f"take a smaller --context, such as {min(model.context // 2, 32768)}",
            ) from error


def _with_end_of(model: LoadedModel, tokenizer: ChatTokenizer) -> LoadedModel:
    """The model with the token that ends an answer by its tokenizer, which not every generation_config.json names."""
    end = tokenizer.control.get(tokenizer.names.get("eos_token", ""))
    return model if end is None else replace(model, eos_ids=model.eos_ids | {end})


def trusting_settings(config: Config, folder: Path) -> ModelConfig:
    """The model's settings, with the trust in the code of this very folder that the user gave in an earlier run."""
    is_trusted = Trust.from_config(config).trusts(Kind.CODE, folder)
    return replace(config.model, trust_remote_code=config.model.trust_remote_code or is_trusted)


def _find_files(config: Config, progress: Progress) -> ModelFiles:
    wanted = config.model
    progress(f"looking for {wanted.name}", 0, 0)
    catalog = Catalog(config.paths.models, offline=wanted.offline, progress=progress)
    return catalog.resolve(wanted.name, needs_template=wanted.chat_template is None)


def _fingerprint(config: Config, model: LoadedModel, files: ModelFiles) -> bytes:
    regime: dict[str, object] = {
        "dtype": _dtype(model),
        "device": model.device.type,
        "weights": model.weights.regime,
        "arithmetic": arithmetic(model.page) if model.is_exact else "",
    }
    contents = Contents(config.paths.models)
    return fingerprint(files.folder, regime, contents=contents, adapter=model.adapter, gguf=files.gguf)


def _dtype(model: LoadedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _open_cache(
    config: Config, engine: Engine, mark: bytes, warn: Callable[[str], None]
) -> PrefixCache | None:
    layout, model = engine.kv_layout, engine.loaded
    if layout is None or config.cache.mode == "off":
        return None
    settings = CacheSettings.from_config(config.cache, config.paths.cache if config.chat.save else None)
    meta = {"model": model.name, "dtype": _dtype(model)} | (
        {"adapter": str(model.adapter)} if model.adapter else {}
    )
    return PrefixCache(layout, mark, settings, meta=meta, warn=warn)


def _describe(engine: Engine, template: ChatTemplate, *, load_ms: float) -> ModelInfo:
    loaded = engine.loaded
    settings = loaded.generation_defaults
    samples, stops = bool(settings.get("do_sample")), settings.get("stop_strings", ())
    return ModelInfo(
        name=loaded.name,
        architecture=loaded.architecture,
        adapter=str(loaded.adapter or ""),
        dtype=_dtype(loaded),
        device=str(loaded.device),
        context=loaded.context,
        num_parameters=loaded.network.num_parameters,
        kv_bytes_per_token=engine.kv_bytes_per_token,
        reuse=loaded.rule.policy.value,
        continuation=loaded.rule.continuation.value,
        is_exact=loaded.is_exact and (engine.cache is None or engine.cache.settings.is_exact),
        tokenizer=template.tokenizer.id,
        load_ms=load_ms,
        template=kind_of(template).value,
        takes_tools=template.takes_tools,
        stop_ids=tuple(sorted(loaded.eos_ids | set(template.closing_ids))),
        weights=loaded.weights.mode.value,
        weights_why=loaded.weights.why,
        num_at_once=engine.batch.most,
        defaults=Options(
            max_tokens=settings.get("max_new_tokens"),
            stop=(stops,) if isinstance(stops, str) else tuple(stops),
            temperature=float(settings.get("temperature", 1.0)) if samples else 0.0,
            top_k=max(0, int(settings.get("top_k", 50))) if samples else None,
            top_p=float(settings.get("top_p", 1.0)) if samples else None,
            min_p=float(settings.get("min_p", 0.0)) if samples else None,
            repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
        ),
    )
