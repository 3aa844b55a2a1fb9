"""Sizes in bytes, by which settings give their defaults."""

KIB, MIB, GIB = 1024, 1024**2, 1024**3
