"""The table's rows of `kvchat bench`: what can be measured, and with which arguments."""

from __future__ import annotations

from functools import partial

from kvchat.commands.arguments import AGAINST, LENGTHS, NUM_MESSAGES, NUM_PROMPTS, PLOT, RUNS, TRACE
from kvchat.commands.command import Command, verb

HOW = ("-m", "--dtype", "--device", "--weights")
"""The flags that say which model is run, and how."""
_bench = partial(verb, "bench")
_BENCH = "measurements on this machine"

BENCHES: tuple[Command, ...] = (
    Command(
        "bench start",
        _BENCH,
        "time from start until the prompt takes keys, and until -p prints a word",
        _bench("started"),
        RUNS | AGAINST,
        HOW,
    ),
    Command(
        "bench ttft",
        _BENCH,
        "time to the first token, by where the history is held",
        _bench("first_tokens"),
        LENGTHS | RUNS | AGAINST | PLOT,
        HOW,
    ),
    Command(
        "bench typing",
        _BENCH,
        "time from Enter to the first word, while a message is typed as people do",
        _bench("typed"),
        LENGTHS | NUM_MESSAGES | {"--threads": RUNS["--threads"]},
        HOW,
    ),
    Command(
        "bench prefill",
        _BENCH,
        "speed of computing a prompt, in tokens per second",
        _bench("prefilled"),
        LENGTHS | RUNS | AGAINST | PLOT,
        HOW,
    ),
    Command(
        "bench decode",
        _BENCH,
        "speed of answering, in tokens per second, by length of the history",
        _bench("decoded"),
        LENGTHS | RUNS | AGAINST | PLOT,
        HOW,
    ),
    Command(
        "bench restore",
        _BENCH,
        "time to restore KV from RAM and disk, against computing it",
        _bench("restored"),
        LENGTHS | RUNS,
        (*HOW, "--cache-codec"),
    ),
    Command(
        "bench lookup",
        _BENCH,
        "gain and cost of guessing ahead",
        _bench("looked_up"),
        RUNS,
        (*HOW, "--draft"),
    ),
    Command(
        "bench memory",
        _BENCH,
        "peak memory of a chat",
        _bench("remembered"),
        LENGTHS | AGAINST | {"--threads": RUNS["--threads"]},
        HOW,
    ),
    Command(
        "bench weights",
        _BENCH,
        "loss of quality through integer weights",
        _bench("weighed"),
        LENGTHS | {"--threads": RUNS["--threads"]},
        HOW,
    ),
    Command(
        "bench exact",
        _BENCH,
        "whether the cache changes an answer, to the bit",
        _bench("compared"),
        NUM_PROMPTS | {"--threads": RUNS["--threads"]},
        (*HOW, "--draft"),
    ),
    Command(
        "bench policy",
        _BENCH,
        "what is forgotten, replayed from a trace against LRU and the optimum",
        _bench("forgotten"),
        TRACE,
    ),
    Command(
        "bench codec",
        _BENCH,
        "size of stored KV, and loss of quality through int8",
        _bench("encoded"),
        RUNS,
        HOW,
    ),
)
