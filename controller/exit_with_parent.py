"""A process that must not outlive the one that started it: its standard input is a pipe that the other holds."""

import os
import threading

STANDARD_INPUT = 0


def end_with_parent() -> None:
    """From now on this process ends at once when its standard input does, which a parent that is killed cannot help."""
    threading.Thread(target=_wait, name="end with parent", daemon=True).start()


def _wait() -> None:
    while os.read(STANDARD_INPUT, 4096):
        pass
    os._exit(1)
