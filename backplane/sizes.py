"""Numbers of bytes for people."""


def readable_size(size: int) -> str:
    """`512 B`, `1.5 KiB`, in powers of 1,024."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
