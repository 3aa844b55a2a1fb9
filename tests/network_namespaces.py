"""Networks that a test makes for itself: namespaces of the kernel, joined by virtual cables, that nothing leaves.

A namespace lives as long as a process in it does, so nothing is left behind, however a test ends. It needs root.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from tests.servers import Missing

LONGEST_SECONDS = "900"


class Namespace:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"echo; exec sleep {LONGEST_SECONDS}"], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "no namespace was made"  # it prints when the namespace is there
        self.pid = self._process.pid

    def words(self, *command: str) -> list[str]:
        return [shutil.which("nsenter") or "nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def sh(self, script: str, *, stdin: str = "") -> str:
        """What the script prints. Fails the test where a command of it fails."""
        done = subprocess.run(self.words("sh", "-euc", script), input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def python(self, code: str, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.words(sys.executable, "-ISc", code, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def namespaces(count: int, *programs: str) -> Iterator[list[Namespace]]:
    """Raises Missing where this user may make none, or has none of the programs."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Missing("network namespaces, which only root of a Linux machine may make")
    for program in ("unshare", "nsenter", *programs):
        if shutil.which(program) is None:
            raise Missing(f"the program {program} (on Debian: apt install iproute2 nftables iptables)")
    made: list[Namespace] = []
    try:
        for _ in range(count):
            made.append(Namespace())
        yield made
    finally:
        for namespace in made:
            namespace.end()
