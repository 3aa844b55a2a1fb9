"""The engine's list of system calls without those that make namespaces.

A user namespace of its own gives a command all capabilities in it, and with them parts of the kernel that were not
written for everybody: most ways out of a container begin there. Docker's own list forbids it to a container without
capabilities; Podman's does not, so for Podman that part is replaced by what Docker has.
"""

import fcntl
import json
import os
from typing import Any

_MAKE_NAMESPACES = {"clone", "clone3", "setns", "unshare"}
_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_ENOSYS = 38


class SystemCalls:
    """A profile as a file in memory, for a child process that inherits it: nothing of it is left on a disk."""

    def __init__(self, profile: str) -> None:
        self.file = os.memfd_create("system-calls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(self.file), "w") as file:
            file.write(profile)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    @property
    def path(self) -> str:
        """Its name in a process that inherits `file`."""
        return f"/proc/self/fd/{self.file}"

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def without_namespaces(profile: str) -> str:
    """The profile (JSON), changed. What it forbids stays forbidden."""
    rules: dict[str, Any] = json.loads(profile)
    kept = []
    for rule in rules["syscalls"]:
        names = [name for name in rule.get("names", ()) if name not in _MAKE_NAMESPACES]
        if names:
            kept.append({**rule, "names": names})
    kept.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [_without_flags(0)], "excludes": _S390})
    kept.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [_without_flags(1)], "includes": _S390})
    # Its flags lie in memory, where a filter does not see them; for want of it, threads are made by clone.
    kept.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS, "errno": "ENOSYS"})
    return json.dumps({**rules, "syscalls": kept})


_S390 = {"arches": ["s390", "s390x"]}


def _without_flags(position: int) -> dict[str, Any]:
    return {"index": position, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
