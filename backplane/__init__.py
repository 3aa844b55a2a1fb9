"""What the processes plug into: the values that travel between them, and the adapters of what they share."""

VERSION = "0.1.0"
