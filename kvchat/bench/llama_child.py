"""llama.cpp as a contender: a script of its own, which needs llama-cpp-python or xllamacpp and nothing of kvchat.

Reads one JSON object a line and answers each with one: first `gguf`, `threads` and `context`, then prompts.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

_REMEDY = "pip install 'kvchat[llama]', or name an interpreter that has it with --llama-python"
Timed = Callable[[Sequence[int], int, bool], tuple[float, float]]
"""Prompt, number of tokens and whether to reuse what is held of the prompt -> seconds to the first token, and on."""


def main() -> None:
    """Serve until the pipe closes."""
    requests = (json.loads(line) for line in sys.stdin)
    hello = next(requests)
    try:
        timed, facts = started(hello)
    except ImportError as error:
        say({"error": str(error), "remedy": _REMEDY})
        return
    say(facts)
    serve(timed, requests)


def started(hello: dict[str, Any]) -> tuple[Timed, dict[str, Any]]:
    """The model by whichever of the two packages there is, and what there is to say of it. Raises ImportError."""
    try:
        return bound(hello)
    except ImportError:
        return served(hello)


def bound(hello: dict[str, Any]) -> tuple[Timed, dict[str, Any]]:
    """The model by llama-cpp-python. Raises ImportError without it."""
    import llama_cpp

    threads = _num_threads(hello)
    model = llama_cpp.Llama(
        hello["gguf"],
        n_ctx=hello["context"] or 0,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def timed(prompt: Sequence[int], num_tokens: int, reuse: bool) -> tuple[float, float]:
        if not reuse:
            model.reset()
        started = time.perf_counter()
        tokens = model.generate(prompt, temp=0.0)
        next(tokens)
        first = time.perf_counter()
        for _ in range(num_tokens - 1):
            next(tokens)
        return first - started, time.perf_counter() - first

    return timed, {"threads": threads, "version": llama_cpp.__version__}


def served(hello: dict[str, Any]) -> tuple[Timed, dict[str, Any]]:
    """The model by llama.cpp's own server in this process, and the times that it states: without HTTP, and without
    text that waits for the rest of a character. Raises ImportError without xllamacpp."""
    import xllamacpp

    threads = _num_threads(hello)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = hello["gguf"], hello["context"] or 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port, params.n_parallel = ["127.0.0.1"], 0, 1
    params.cache_ram_mib, params.fit_params, params.verbosity = 0, False, 0
    server = xllamacpp.Server(params)

    def timed(prompt: Sequence[int], num_tokens: int, reuse: bool) -> tuple[float, float]:
        wanted = {"prompt": prompt, "n_predict": num_tokens, "cache_prompt": reuse}
        said = _posted(server.listening_address, wanted | {"temperature": 0.0, "ignore_eos": True})
        assert said["timings"]["predicted_n"] == num_tokens, said["timings"]
        return said["timings"]["prompt_ms"] / 1e3, said["timings"]["predicted_ms"] / 1e3

    return timed, {"threads": threads, "version": f"xllamacpp {xllamacpp.__version__}"}


def _num_threads(hello: dict[str, Any]) -> int:
    return int(hello["threads"] or len(os.sched_getaffinity(0)))


def _posted(address: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The server's answer to a request for a completion."""
    from http.client import HTTPConnection

    connection = HTTPConnection(urlsplit(address).netloc)
    try:
        connection.request("POST", "/completion", json.dumps(wanted), {"Content-Type": "application/json"})
        return dict(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def serve(timed: Timed, requests: Iterator[dict[str, Any]]) -> None:
    """Answer each request."""
    for request in requests:
        if request.get("memory"):
            say({"peak_bytes": peak_bytes()})
            continue
        first_s, rest_s = timed(request["prompt"], request["num_tokens"], request["reuse"])
        say({"first_s": first_s, "rest_s": rest_s})


def peak_bytes() -> int:
    """This process's peak of resident memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(answer: dict[str, Any]) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
