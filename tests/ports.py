"""A port for a process that must know it before it starts.

It lies below those that the system gives to outgoing connections and to whoever asks for port 0. So nothing takes it
between the look and the start but another test, and each process that runs tests begins at another place.
"""

import os
import socket

FIRST, LAST = 20_000, 32_000
_next = FIRST + os.getpid() * 37 % (LAST - FIRST)


def own_port() -> int:
    """One of loopback that nobody listens on."""
    global _next
    for _ in range(LAST - FIRST):
        _next = _next + 1 if _next < LAST else FIRST
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _next))
            except OSError:
                continue
            return _next
    raise RuntimeError(f"all ports from {FIRST} to {LAST} are taken")
