"""Readers of the two forms that a filter of system calls has: what the kernel is given, and what an engine is given.

Each says what becomes of one call: the word `allow` or `kill`, or the number of the error that the caller sees.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
Verdict = str | int


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), *, machine: str) -> Verdict:
    """Run a program of classic BPF, as seccomp(2) describes it, on one call. Fails on whatever the kernel would refuse
    to load."""
    padded = (*arguments, *(0,) * 6)[:6]
    data = struct.pack("<iIQ6Q", number - (number >> 31 << 32), ARCHITECTURES[machine], 0, *padded)
    instructions = list(struct.iter_unpack("<HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert value % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:  # BPF_RET | BPF_K
            return _meaning(value)
        else:
            tests = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}
            at += if_true if tests[code] else if_false


def _meaning(action: int) -> Verdict:
    if action == 0x7FFF0000:
        return "allow"
    if action == 0x80000000:
        return "kill"
    assert action & 0xFFFF0000 == 0x00050000
    return action & 0xFFFF


@dataclass(frozen=True)
class Profile:
    """A profile of an engine, for a container without capabilities on x86_64. `conditions` on the same argument of one
    rule are joined by "or" there, so a rule that has two is an error here."""

    default: Verdict
    rules: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, text: str) -> "Profile":
        read = json.loads(text)
        default = "allow" if read["defaultAction"] == "SCMP_ACT_ALLOW" else read.get("defaultErrnoRet", 1)
        rules = [rule for rule in read["syscalls"] if _holds(rule)]
        return cls(default, tuple(rules))

    def verdict(self, name: str, arguments: tuple[int, ...] = ()) -> Verdict:
        """Refusals go first; a mixture of both for the same call would be for libseccomp to decide."""
        found = {_action(rule) for rule in self.rules if name in rule["names"] and _fits(rule, arguments)}
        unconditional = {_action(rule) for rule in self.rules if name in rule["names"] and not rule.get("args")}
        conditional = {_action(rule) for rule in self.rules if name in rule["names"] and rule.get("args")}
        assert not (unconditional and conditional), f"{name}: libseccomp drops the rules with conditions"
        assert len(found) <= 1, f"{name}: two rules contradict each other"
        return found.pop() if found else self.default


def _holds(rule: dict[str, Any]) -> bool:
    included, excluded = rule.get("includes") or {}, rule.get("excludes") or {}
    arches = {"amd64", "x86_64"}
    if included.get("caps") or (included.get("arches") and not arches & set(included["arches"])):
        return False
    return not arches & set(excluded.get("arches") or ())


def _action(rule: dict[str, Any]) -> Verdict:
    if rule["action"] == "SCMP_ACT_ALLOW":
        return "allow"
    assert rule["action"] == "SCMP_ACT_ERRNO"
    return int(rule["errnoRet"])


def _fits(rule: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    conditions = rule.get("args") or []
    indexes = [condition["index"] for condition in conditions]
    assert len(indexes) == len(set(indexes)), "an engine joins these by or"
    return all(_compares(condition, (*arguments, *(0,) * 6)[condition["index"]]) for condition in conditions)


def _compares(condition: dict[str, Any], argument: int) -> bool:
    value: int = condition["value"]
    results = {
        "SCMP_CMP_EQ": argument == value,
        "SCMP_CMP_NE": argument != value,
        "SCMP_CMP_GT": argument > value,
        "SCMP_CMP_MASKED_EQ": argument & value == condition.get("valueTwo", 0),
    }
    return bool(results[condition["op"]])
