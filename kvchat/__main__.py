"""`kvchat` and `python -m kvchat`: the command line, and nothing else."""

import os
import sys


def main() -> int:
    """Run kvchat; the exit code."""
    try:
        from kvchat.cli import main

        return main()
    except KeyboardInterrupt:  # while that was imported; the interpreter would end by the signal
        os._exit(130)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working folder, whose files are no part of the program
    sys.exit(main())
