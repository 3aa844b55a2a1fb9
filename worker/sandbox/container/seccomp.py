"""The list of refused system calls (`worker.sandbox.system_calls`) as profiles that container engines read.

`strengthened` is for the containers of commands: the engine's own list of what is allowed, without what we refuse.
Podman allows keyrings, all families of sockets and namespaces. `worker_profile` is for the container of a worker in
Compose, in which bubblewrap builds its sandboxes: all is allowed but what neither needs. Its file is written by

    python -m worker.sandbox.container.seccomp > compose/seccomp-worker.json
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from worker.sandbox.system_calls import Refusal, Where, refused_in

_ALL_BITS = 0xFFFFFFFF
"""The kernel looks at 32 bits of these arguments, an engine's filter at 64: what is above must not hide a value."""

_MOST_RULES = 256
_S390 = {"arches": ["s390", "s390x"]}

Object = dict[str, Any]


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


def strengthened(profile: str) -> str:
    """An engine's profile (JSON), changed: what it forbids stays forbidden. Raises ValueError, LookupError or
    TypeError for what is no profile."""
    rules: Object = json.loads(profile)
    refusals = refused_in(Where.SANDBOX)
    if rules["defaultAction"] == "SCMP_ACT_ALLOW":
        return json.dumps({**rules, "syscalls": [*rules["syscalls"], *(r for each in refusals for r in _refuse(each))]})
    # Next to a rule that allows a call whatever its arguments are, libseccomp drops refusals of single values: they are
    # those of ioctl, about terminals, which such a container does not have.
    refusals = [refusal for refusal in refusals if not refusal.refused]
    ours = {name for refusal in refusals for name in refusal.names}
    allowed = set()
    kept = []
    for rule in rules["syscalls"]:
        names = rule.get("names", ())
        if rule["action"] == "SCMP_ACT_ALLOW":
            allowed |= ours.intersection(names)
        if others := [name for name in names if name not in ours]:
            kept.append({**rule, "names": others})
    for name in sorted(ours):
        kept += _allow(name, [refusal for refusal in refusals if name in refusal.names], name in allowed)
    return json.dumps({**rules, "syscalls": kept})


def worker_profile() -> str:
    """The profile of the worker's container in Compose."""
    rules = [rule for refusal in refused_in(Where.WORKER) for rule in _refuse(refusal)]
    lines = ",\n  ".join(json.dumps(rule) for rule in rules)
    return f'{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [\n  {lines}\n]}}\n'


def _allow(name: str, refusals: list[Refusal], was_allowed: bool) -> Iterator[Object]:
    """Rules that allow a call as far as no refusal says otherwise."""
    first = refusals[0]
    if first.index is None:
        yield {"names": [name], **_error(first)}
    elif was_allowed and first.refused_bits:
        of_arguments = _masked(first.index, first.refused_bits, 0)
        if name == "clone":  # its first two arguments have changed places there
            yield _allowance(name, _masked(1, first.refused_bits, 0)) | {"includes": _S390}
            yield _allowance(name, of_arguments) | {"excludes": _S390}
        else:
            yield _allowance(name, of_arguments)
    elif was_allowed:
        for value in first.allowed:
            condition = _compare(first.index, "SCMP_CMP_EQ", value)
            narrower = next((refusal for refusal in refusals[1:] if refusal.given == (first.index, value)), None)
            if narrower is None or narrower.index is None:
                yield _allowance(name, condition)
                continue
            for other in narrower.allowed:
                yield _allowance(name, condition, _compare(narrower.index, "SCMP_CMP_EQ", other))


def _refuse(refusal: Refusal) -> Iterator[Object]:
    """Rules that refuse a call where all is allowed. Several values of one argument are a rule each, for an engine
    joins conditions on the same argument by "or"."""
    rule = {"names": list(refusal.names), **_error(refusal)}
    index = refusal.index
    if index is None:
        yield rule
        return
    if any(value > _MOST_RULES for value in refusal.allowed):
        return  # what lies between such values cannot be said here: each would be a rule
    conditions = [_masked(index, _ALL_BITS, value) for value in refusal.refused]
    conditions += [_masked(index, 1 << bit, 1 << bit) for bit in range(32) if refusal.refused_bits >> bit & 1]
    if refusal.allowed:
        conditions += [
            _masked(index, _ALL_BITS, value) for value in range(max(refusal.allowed)) if value not in refusal.allowed
        ]
        conditions.append(_compare(index, "SCMP_CMP_GT", max(refusal.allowed)))
    given = [_masked(refusal.given[0], _ALL_BITS, refusal.given[1])] if refusal.given else []
    for condition in conditions:
        yield {**rule, "args": [*given, condition]}


def _error(refusal: Refusal) -> Object:
    return {"action": "SCMP_ACT_ERRNO", "errnoRet": refusal.errno, "errno": errno.errorcode[refusal.errno]}


def _allowance(name: str, *conditions: Object) -> Object:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(conditions)}


def _compare(index: int, operator: str, value: int) -> Object:
    return {"index": index, "value": value, "op": operator}


def _masked(index: int, mask: int, value: int) -> Object:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


if __name__ == "__main__":
    print(worker_profile(), end="")
