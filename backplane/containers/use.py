"""What running containers use, as an engine's `stats` says it: once, not as a stream.

Docker and Podman print the same columns in words for people, so the numbers have three or four digits. Docker takes two
seconds for it, as it looks twice; Podman gives the processor's use since the container began.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

FORMAT = r"{{.CPUPerc}}\t{{.MemUsage}}\t{{.NetIO}}"

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)(i?)B")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class ContainerUse:
    """`cores`: processors in use. The bytes of the network are those since the container began."""

    cores: float = 0.0
    memory_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0

    def __add__(self, other: "ContainerUse") -> "ContainerUse":
        return ContainerUse(
            self.cores + other.cores,
            self.memory_bytes + other.memory_bytes,
            self.received_bytes + other.received_bytes,
            self.sent_bytes + other.sent_bytes,
        )


def parse_use(printed: str) -> Sequence[ContainerUse]:
    """Of each line that FORMAT makes. What an engine does not know (`--`) is 0. Raises ValueError for other lines."""
    return [_use(line) for line in printed.splitlines() if line.strip()]


def _use(line: str) -> ContainerUse:
    percent, memory, network = line.split("\t")
    received, sent = _both(network)
    return ContainerUse(_cores(percent), _both(memory)[0], received, sent)


def _cores(percent: str) -> float:
    text = percent.strip().removesuffix("%")
    return 0.0 if text in ("--", "NaN", "") else float(text) / 100


def _both(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    return _bytes(first), _bytes(second)


def _bytes(text: str) -> int:
    text = text.strip()
    if text in ("--", ""):
        return 0
    if (found := _SIZE.fullmatch(text)) is None:
        raise ValueError(f"{text!r} is no size")
    number, unit, binary = found.groups()
    base: int = 1024 if binary else 1000
    return round(float(number) * float(base) ** _POWERS[unit.upper()])
