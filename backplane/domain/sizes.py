"""Sizes: units of bytes, numbers of bytes for people, and texts that are too long."""

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def readable_size(size: int) -> str:
    """`512 B`, `1.5 KiB`, in powers of 1,024."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def shortened(text: str, most: int) -> str:
    """The first `most` characters, and a mark where more followed. Redaction knows by the mark that a secret may have
    been cut there."""
    return text if len(text) <= most else f"{text[:most]}…"
