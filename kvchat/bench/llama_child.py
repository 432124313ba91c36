"""llama.cpp as a contender: a script of its own, which needs llama-cpp-python and nothing of kvchat.

Reads one JSON object a line and answers each with one: first `gguf`, `threads` and `context`, then prompts.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

_REMEDY = "pip install 'kvchat[llama]', or name an interpreter that has it with --llama-python"


def main() -> None:
    """Serve until the pipe closes."""
    requests = (json.loads(line) for line in sys.stdin)
    hello = next(requests)
    try:
        import llama_cpp
    except ImportError as error:
        say({"error": str(error), "remedy": _REMEDY})
        return
    threads = hello["threads"] or len(os.sched_getaffinity(0))
    model = llama_cpp.Llama(
        hello["gguf"],
        n_ctx=hello["context"] or 0,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    say({"threads": threads, "version": llama_cpp.__version__})
    serve(model, requests)


def serve(model: Any, requests: Iterator[dict[str, Any]]) -> None:
    """Answer each request; the model keeps what it holds of the last prompt unless told otherwise."""
    for request in requests:
        if request.get("memory"):
            say({"peak_bytes": peak_bytes()})
            continue
        if not request["reuse"]:
            model.reset()
        started = time.perf_counter()
        tokens = model.generate(request["prompt"], temp=0.0)
        next(tokens)
        first = time.perf_counter()
        for _ in range(request["num_tokens"] - 1):
            next(tokens)
        say({"first_s": first - started, "rest_s": time.perf_counter() - first})


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
