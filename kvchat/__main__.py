"""`python -m kvchat`: the command line, and nothing else."""

import sys

from kvchat.cli import main

if __name__ == "__main__":
    sys.exit(main())
