"""kvchat's command line with the scripted backend in place of a model.

KVCHAT_TEST_LOAD_S makes it load slowly, KVCHAT_TEST_TEMPLATE is the kind of its chat template,
KVCHAT_TEST_WAITING is a file that appears when somebody waits for the model, KVCHAT_TEST_PREPARED one with a line for
each time that something was prepared: how many turns.
"""

import os
import sys
from pathlib import Path

from kvchat.backends.base import Backend
from kvchat.cli import main
from kvchat.commands.chat import Backends
from kvchat.config import Config
from tests.scripted import ScriptedBackend


def scripted(config: Config) -> Backend:
    mark, log = (os.environ.get(f"KVCHAT_TEST_{name}") for name in ("WAITING", "PREPARED"))
    return ScriptedBackend(
        load_s=float(os.environ.get("KVCHAT_TEST_LOAD_S", "0")),
        missing=config.model.name == "nobody",
        template=os.environ.get("KVCHAT_TEST_TEMPLATE", "append-safe"),
        waiting_mark=Path(mark) if mark else None,
        prepared_log=Path(log) if log else None,
    )


if __name__ == "__main__":
    sys.exit(main(backends=Backends(oneshot=scripted, dialogue=scripted)))
