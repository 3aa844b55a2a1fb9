"""What a step did, where no part of the platform can undo or repeat it: a line in a file outside.

One line a mark, appended with O_APPEND in one write, so that lines of several processes neither mix nor get lost when
one of them is killed. The order of the lines is the order of the deeds.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mark:
    """`label` is the run as its plan names it, `generation` the claim under which it was made (0: not known)."""

    label: str
    step: str
    generation: int
    process: int
    wall: float


def append(path: Path, label: str, step: str, generation: int) -> None:
    line = json.dumps(asdict(Mark(label, step, generation, os.getpid(), time.time()))) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(path: Path) -> list[Mark]:
    """All marks, in order. A line that is still being written is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    return [Mark(**json.loads(line)) for line in lines]
