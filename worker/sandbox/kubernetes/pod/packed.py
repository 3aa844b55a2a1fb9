"""The runner as the container's first process: the text of its modules, packed into an argument of `python3 -c`.

So any image with Python 3.8 will do, none has to be built for it, and worker and runner are always of one version.
"""

import zlib
from base64 import b64encode
from pathlib import Path

_MODULES = ("frames", "machine", "disk", "spool", "process", "connection", "tunnels", "files", "runner")
"""Each after those that it imports."""

_START = """
import base64, sys, types, zlib
for text in zlib.decompress(base64.b64decode("{packed}")).decode().split("\\0"):
    name, _, source = text.partition("\\n")
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
sys.exit(module.main(*sys.argv[1:]))
"""

PIPE = """
import os, socket, sys, threading, time
for attempt in range(1000):
    joined = socket.socket(socket.AF_UNIX)
    try:
        joined.connect("\\0agent-sandbox")
        break
    except OSError:
        joined.close()
        time.sleep(0.01)
else:
    sys.exit("no runner answers")
def down():
    while True:
        data = joined.recv(262144)
        if not data:
            os._exit(0)
        while data:
            data = data[os.write(1, data):]
threading.Thread(target=down, daemon=True).start()
while True:
    data = os.read(0, 262144)
    if not data:
        os._exit(0)
    joined.sendall(data)
"""
"""Joins its own input and output with the runner's socket; the API server starts it for each stream."""
PIPE_ARGV = ("python3", "-I", "-S", "-c", PIPE)


def runner_argv(workspace: str, idle_seconds: float, tmp_bytes: int) -> tuple[str, ...]:
    """The container's first process. After `idle_seconds` with no command and no worker it ends by itself;
    a command that leaves more than `tmp_bytes` in /tmp is ended."""
    package = __name__.rpartition(".")[0]
    texts = [f"{package}.{name}\n{Path(__file__).with_name(name + '.py').read_text('utf-8')}" for name in _MODULES]
    packed = b64encode(zlib.compress("\0".join(texts).encode(), 9)).decode()
    program = _START.format(packed=packed)
    return ("python3", "-I", "-S", "-B", "-W", "ignore", "-c", program, workspace, str(idle_seconds), str(tmp_bytes))
