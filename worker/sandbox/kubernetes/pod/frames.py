"""The frames that the worker and the runner in a pod exchange: a letter, the payload's length, the payload."""

from __future__ import annotations

import json
import struct
from typing import Any

SOCKET = "\0agent-sandbox"
"""In the network namespace of the pod, not in its files: the command cannot remove it."""

HEADER = struct.Struct(">cI")
MAX_PAYLOAD = 1024 * 1024

# From the worker.
HELLO, BEGIN, DELETE, INPUT, GO, ACKNOWLEDGE, KILL, COLLECT, QUIT = b"H", b"B", b"X", b"I", b"G", b"A", b"K", b"C", b"Q"
# To the worker.
STATE, OUTPUT, ENDED, DELETED, LINK, DONE, FAULT = b"S", b"O", b"E", b"R", b"L", b"Z", b"W"
# Both ways: a file's path and size, then its content; links; all folders, in the end, and from the pod with them what
# lies beside bytecode. A runner that knows times and modes says so in its STATE, and is asked for them by COLLECT with
# WITH_ATTRIBUTES.
FILE, DATA, FOLDERS = b"F", b"D", b"N"
WITH_ATTRIBUTES = b"attributes"
FOLDERS_AT_ONCE = 500
# A connection that the command makes (to the worker), what it carries and its end (both ways): a number, then bytes.
TUNNEL, TUNNEL_DATA, TUNNEL_END = b"T", b"U", b"V"

EGRESS = "/tmp/.egress.sock"  # noqa: S108 - a volume of the pod's own

CHUNK = 64 * 1024


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def json_frame(kind: bytes, value: Any) -> bytes:
    return frame(kind, json.dumps(value).encode())
