"""`kvchat` and `python -m kvchat`: the command line, and nothing else."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run kvchat; the exit code."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(
            signal.SIGINT, _end
        )  # an exception would be lost in a callback of importing now and then
    from kvchat.cli import main

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working folder, whose files are no part of the program
    sys.exit(main())
