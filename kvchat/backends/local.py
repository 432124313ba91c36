"""A backend in this process: template + engine + stop strings. The library, one-shot mode and the engine process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from kvchat.backends import base
from kvchat.backends.base import (
    Answer,
    CacheView,
    Event,
    FinishReason,
    ModelInfo,
    Options,
    Phase,
    Role,
    Status,
    Turn,
)
from kvchat.backends.report import Asked, cache_report
from kvchat.backends.text import Piece, ReasoningSplitter, StopScanner
from kvchat.backends.view import cache_view
from kvchat.cache.folder import default_disk_bytes
from kvchat.cache.match import CacheSettings
from kvchat.cache.pool import default_ram_bytes
from kvchat.cache.prefix_cache import PrefixCache
from kvchat.config import Config
from kvchat.engine.engine import (
    PINNED_PRIORITY,
    SHARED_PRIORITY,
    Engine,
    Finish,
    Finished,
    Progress,
    Request,
    Reuse,
    Token,
)
from kvchat.engine.sampling import SamplingParams
from kvchat.engine.worker import Worker
from kvchat.errors import ContextOverflowError, ModelUnavailableError
from kvchat.models.catalog import Catalog
from kvchat.models.fingerprint import fingerprint
from kvchat.models.loader import load_model
from kvchat.models.template import ChatTemplate, Message
from kvchat.models.tokenizer import ChatTokenizer, load_tokenizer, read_template


@dataclass(slots=True)
class _Loaded:
    engine: Engine
    tokenizer: ChatTokenizer
    template: ChatTemplate
    info: ModelInfo
    ready_at: float
    last: Asked | None = None


class LocalBackend:
    """Loads the model of `config` in a thread of its own and answers there. See `base.Backend`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._status = Status(Phase.STARTING)
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._worker: Worker[_Loaded] = Worker(self._load, unload=lambda loaded: loaded.engine.close())

    def start(self) -> None:
        self._worker.start()

    def status(self) -> Status:
        return self._status

    def info(self) -> ModelInfo:
        return self._worker.wait().info

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        submitted = time.perf_counter()
        turns = tuple(history)

        def job(loaded: _Loaded, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            started = max(submitted, loaded.ready_at)
            if loaded.engine.cache is not None:
                loaded.engine.cache.stats.begin_turn()
            answering = _Answering(loaded, turns, options, self.config)
            try:
                for event in answering.events(is_cancelled, started, self._show):
                    while not self._notices.empty():
                        yield base.Notice(self._notices.get())
                    yield event
            finally:
                self._show(Status(Phase.READY))
                loaded.last = Asked(turns, (*answering.prompt, *answering.ids))
                loaded.engine.store()

        return self._worker.run(job)

    def warm(self, history: Sequence[Turn], *, pinned: bool = False) -> Iterator[Event]:
        turns = tuple(history)

        def job(loaded: _Loaded, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
            messages = [_message(turn, loaded.tokenizer.id) for turn in turns]
            only_system = turns[-1].role is Role.SYSTEM
            ids = loaded.template.prompt(messages if not only_system else [*messages, Message("user", "")])
            ids = ids[: loaded.template.shared_tokens(messages)] if only_system else ids
            _check_room(ids, loaded)
            priority = PINNED_PRIORITY if pinned else SHARED_PRIORITY
            try:
                for event in loaded.engine.warm(ids, is_cancelled, priority=priority):
                    self._show(Status(Phase.PREFILLING, "", event.done, event.total))
                    yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
            finally:
                self._show(Status(Phase.READY))

        return self._worker.run(job)

    def cache(self, history: Sequence[Turn]) -> CacheView:
        turns = tuple(history)

        def job(loaded: _Loaded, _: Callable[[], bool]) -> Iterator[CacheView]:
            messages = [_message(turn, loaded.tokenizer.id) for turn in turns]
            yield cache_view(loaded.engine, loaded.template, messages)

        (view,) = self._worker.run(job)
        return view

    def cancel(self) -> None:
        self._worker.cancel()

    def count(self, text: str) -> int:
        return self._worker.wait().tokenizer.count(text)

    def close(self) -> None:
        self._worker.close()
        self._show(Status(Phase.CLOSED))

    def _show(self, status: Status) -> None:
        self._status = status

    def _load(self) -> _Loaded:
        try:
            return self._load_all()
        except BaseException as error:
            self._show(Status(Phase.FAILED, str(error)))
            raise

    def _load_all(self) -> _Loaded:
        started = time.perf_counter()
        wanted = self.config.model
        catalog = Catalog(self.config.paths.models, offline=wanted.offline, progress=self._show_loading)
        self._show(Status(Phase.LOADING, f"looking for {wanted.name}"))
        files = catalog.resolve(wanted.name, needs_template=wanted.chat_template is None)
        self._show(Status(Phase.LOADING, f"loading {files.name}"))
        model = load_model(
            files.folder,
            name=files.name,
            dtype=wanted.dtype,
            device=wanted.device,
            context=wanted.context,
            trust_remote_code=wanted.trust_remote_code,
        )
        source = read_template(files.folder, Path(wanted.chat_template) if wanted.chat_template else None)
        if source is None:
            raise ModelUnavailableError(
                f"{files.name} has no chat template", "give one with --chat-template FILE"
            )
        tokenizer = load_tokenizer(files.folder, control_text=source)
        template = ChatTemplate(source, tokenizer)
        engine = Engine(model)
        self._show(Status(Phase.LOADING, "warming up"))
        engine.warm_up()
        engine.cache = self._open_cache(engine, files.folder)
        ready_at = time.perf_counter()
        self._show(Status(Phase.READY))
        info = _describe(engine, tokenizer, load_ms=(ready_at - started) * 1e3)
        return _Loaded(engine, tokenizer, template, info, ready_at)

    def _open_cache(self, engine: Engine, folder: Path) -> PrefixCache | None:
        wanted, layout = self.config.cache, engine.kv_layout
        if layout is None or wanted.mode == "off":
            return None
        root = self.config.paths.cache if self.config.chat.save else None
        settings = CacheSettings(
            mode=wanted.mode,
            ram_bytes=default_ram_bytes() if wanted.ram is None else wanted.ram,
            disk_bytes=default_disk_bytes(self.config.paths.cache) if wanted.disk is None else wanted.disk,
            disk_root=root,
            block_size=wanted.block_size,
            codec=wanted.codec,
        )
        model = engine.loaded
        regime = {"dtype": str(model.dtype), "device": model.device.type, "weights": "native"}
        mark = fingerprint(folder, regime, memory=self.config.paths.models)
        meta = {"model": model.name, "dtype": str(model.dtype).removeprefix("torch.")}
        return PrefixCache(layout, mark, settings, meta=meta, warn=self._notices.put)

    def _show_loading(self, stage: str, done: int, total: int) -> None:
        self._show(Status(Phase.LOADING, stage, done, total))


class _Answering:
    """One answer being made."""

    def __init__(self, loaded: _Loaded, turns: Sequence[Turn], options: Options, config: Config) -> None:
        self.loaded = loaded
        self.options = options
        self.reuse = config.cache.mode != "off"
        messages = [_message(turn, loaded.tokenizer.id) for turn in turns]
        self.turns = tuple(turns)
        self.prompt = loaded.template.prompt(messages)
        self.shared = loaded.template.shared_tokens(messages)
        _check_room(self.prompt, loaded)
        self.stream = loaded.tokenizer.stream()
        self.scanner = StopScanner(options.stop)
        opened = loaded.template.opens_reasoning(messages)
        self.splitter = ReasoningSplitter(loaded.template.reasoning_marks, is_open=opened)
        self.unfinished = loaded.template.unfinished(messages)
        self.unfinished_text = "".join(self.stream.push(token) for token in self.unfinished)
        self.splitter.feed(self.unfinished_text)
        self.ids: list[int] = []
        self.shown = ""  # text that the stop scanner let through, marks included
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.first_text_at: float | None = None

    def events(
        self, is_cancelled: Callable[[], bool], started: float, show: Callable[[Status], None]
    ) -> Iterator[Event]:
        """The answer's events; `started` is when the clock of the first token began."""
        request = self._request()
        engine_events = self.loaded.engine.generate(request, is_cancelled)
        finished: Finished | None = None
        decode_started = 0.0
        for event in engine_events:
            if isinstance(event, Progress):
                show(Status(Phase.PREFILLING, "", event.done, event.total))
                yield base.Prefilling(event.done, event.total, event.reuse.num_tokens)
                reuse, decode_started = event.reuse, time.perf_counter()
                prefill_s = decode_started - started
            elif isinstance(event, Token):
                if not self.ids:
                    show(Status(Phase.DECODING))
                yield from self._token(event.id)
                if self.scanner.is_hit:
                    decode_s = time.perf_counter() - decode_started
                    prefilled = len(self.prompt) - reuse.num_tokens
                    finished = Finished(Finish.STOP, reuse, prefilled, prefill_s, decode_s, len(self.ids))
                    break
            else:
                finished = event
        engine_events.close()  # type: ignore[attr-defined]
        assert finished is not None
        yield from self._rest()
        yield base.Done(self._answer(finished, started))

    def _request(self) -> Request:
        chosen = effective_options(self.loaded.info.defaults, self.options)
        sampling = SamplingParams(
            temperature=chosen.temperature or 0.0,
            top_k=chosen.top_k or 0,
            top_p=1.0 if chosen.top_p is None else chosen.top_p,
            min_p=chosen.min_p or 0.0,
            repetition_penalty=chosen.repetition_penalty or 1.0,
            seed=chosen.seed,
        )
        stop_ids = self.loaded.engine.loaded.eos_ids | set(self.loaded.template.closing_ids)
        return Request(self.prompt, sampling, self.options.max_tokens, stop_ids, self.shared, self.reuse)

    def _token(self, token: int) -> Iterator[Event]:
        self.ids.append(token)
        yield from self._show(self.scanner.feed(self.stream.push(token)))

    def _rest(self) -> Iterator[Event]:
        """What the stages still hold back at the end."""
        if not self.scanner.is_hit:
            yield from self._show(self.scanner.feed(self.stream.finish()))
        yield from self._show(self.scanner.finish())
        yield from self._emit(self.splitter.finish())

    def _show(self, text: str) -> Iterator[Event]:
        self.shown += text
        yield from self._emit(self.splitter.feed(text) if text else [])

    def _emit(self, pieces: Sequence[Piece]) -> Iterator[Event]:
        for piece in pieces:
            (self.reasoning if piece.is_reasoning else self.text).append(piece.text)
            if self.first_text_at is None:
                self.first_text_at = time.perf_counter()
            yield base.Text(piece.text, piece.is_reasoning)

    def _answer(self, finished: Finished, started: float) -> Answer:
        completion = self._ids_of_shown() if self.scanner.is_hit else self.ids
        reuse = finished.reuse
        first_text_at = self.first_text_at or time.perf_counter()
        timings = base.Timings(
            load_ms=self.loaded.info.load_ms,
            kv_load_ms=reuse.kv_load_s * 1e3,
            cache_n=reuse.num_tokens,
            prompt_n=len(self.prompt) - reuse.num_tokens,
            prompt_ms=finished.prefill_s * 1e3,
            predicted_n=finished.num_generated,
            predicted_ms=finished.decode_s * 1e3,
            ttft_ms=(first_text_at - started) * 1e3,
        )
        return Answer(
            text="".join(self.text),
            reasoning="".join(self.reasoning).strip(),
            prompt=tuple(self.prompt),
            completion=tuple(completion),
            tokenizer=self.loaded.tokenizer.id,
            finish_reason=FinishReason(finished.reason.value),
            usage=base.Usage(len(self.prompt), len(completion), reuse.num_tokens),
            timings=timings,
            cache=self._cache_report(reuse),
        )

    def _cache_report(self, reuse: Reuse) -> base.CacheReport:
        engine = self.loaded.engine
        computing_s = reuse.num_tokens * engine.prefill_s_per_token
        report = cache_report(
            reuse,
            Asked(self.turns, tuple(self.prompt)),
            self.loaded.last,
            decode=self.loaded.tokenizer.decode,
            saved_s=max(0.0, computing_s - reuse.kv_load_s),
        )
        return replace(report, codec=engine.cache.codec) if engine.cache else report

    def _ids_of_shown(self) -> list[int]:
        """The generated ids up to the stop string; where it began inside a token, the rest of the text encoded."""
        tokenizer = self.loaded.tokenizer
        before, shown = self.unfinished, self.unfinished_text + self.shown
        count = len(self.ids)
        while count and not shown.startswith(tokenizer.decode([*before, *self.ids[:count]])):
            count -= 1
        rest = shown[len(tokenizer.decode([*before, *self.ids[:count]])) :]
        return [*self.ids[:count], *(tokenizer.encode_as_text(rest) if rest else ())]


def _check_room(prompt: Sequence[int], loaded: _Loaded) -> None:
    context = loaded.engine.loaded.context
    if len(prompt) >= context:
        raise ContextOverflowError(
            f"the conversation is {len(prompt)} tokens long, the context of {loaded.info.name} has {context}",
            "start anew with /clear, or shorten the message",
        )


def effective_options(defaults: Options, given: Options) -> Options:
    """What the user gave over what the model's settings say.

    A temperature, or a wish for top-k, top-p or min-p, turns sampling on for a model whose settings are greedy.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")
    values = {name: value for name in names if (value := getattr(given, name)) is not None}
    chosen = replace(defaults, **values, stop=given.stop)
    wants_sampling = any(name in values for name in ("top_k", "top_p", "min_p"))
    if wants_sampling and given.temperature is None and not defaults.temperature:
        return replace(chosen, temperature=1.0)
    return chosen


def _message(turn: Turn, tokenizer_id: str) -> Message:
    tokens = turn.tokens if turn.tokenizer == tokenizer_id else None
    return Message(turn.role.value, turn.text, turn.reasoning, tokens)


def _describe(engine: Engine, tokenizer: ChatTokenizer, *, load_ms: float) -> ModelInfo:
    loaded = engine.loaded
    settings = loaded.generation_defaults
    samples = bool(settings.get("do_sample"))
    return ModelInfo(
        name=loaded.name,
        architecture=loaded.architecture,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        context=loaded.context,
        num_parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        kv_bytes_per_token=engine.kv_bytes_per_token,
        reuse=loaded.policy.value,
        tokenizer=tokenizer.id,
        load_ms=load_ms,
        defaults=Options(
            temperature=float(settings.get("temperature", 1.0)) if samples else 0.0,
            top_k=int(settings.get("top_k", 50)) if samples else None,
            top_p=float(settings.get("top_p", 1.0)) if samples else None,
            min_p=float(settings.get("min_p", 0.0)) if samples else None,
            repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
        ),
    )
