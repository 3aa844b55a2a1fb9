"""CPU and memory in the notation of Kubernetes: `500m`, `0.5`, `512Mi`, `1.5G`.

Of that notation only what people write is taken: no exponents, no signs, and no part of a byte. Two texts may be the
same amount, so amounts are compared as numbers.
"""

import re
from decimal import ROUND_UP, Decimal

from backplane.domain.sizes import GIB, KIB, MIB

_CPU = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?|([0-9]{1,9})m")
_MEMORY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_UNITS = {
    "": 1,
    "Ki": KIB,
    "Mi": MIB,
    "Gi": GIB,
    "Ti": 1024 * GIB,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}


def cpu_millis(written: str) -> int:
    """Thousandths of a processor. Raises ValueError."""
    if not (found := _CPU.fullmatch(written)):
        raise ValueError("this is no amount of processors; give one, like 500m or 2")
    whole, part, millis = found.groups()
    return int(millis) if millis else int(whole) * 1000 + int((part or "").ljust(3, "0"))


def memory_bytes(written: str) -> int:
    """Raises ValueError."""
    if not (found := _MEMORY.fullmatch(written)):
        raise ValueError("this is no amount of memory; give one, like 512Mi or 2Gi")
    number, unit = found.groups()
    return int((Decimal(number) * _UNITS[unit or ""]).to_integral_value(ROUND_UP))
