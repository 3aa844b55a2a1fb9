"""Which system calls foreign code may not make: the one list, and the filter of the kernel that follows from it.

Namespaces hide files, processes and networks. They do not hide the kernel itself: keyrings, the hypervisor's sockets,
the kernel's log and the parts of it that were not written for everybody are the same for all. Those are refused here,
and so is what has been broken through often and ordinary programs do not need.

From `REFUSALS` follow three forms: the program that bubblewrap and the runner of a pod load (`compiled`), the profile
of containers and the profile of the worker's container in Compose (`worker.sandbox.container.seccomp`). The list names
what is refused, not what is allowed, so that programs go on working; a number that is newer than the list (`NEWEST`)
does not exist for a command. A refusal is an error that the program sees, and never its end. A call in another
architecture's form (32 bits) ends the process, because its numbers mean something else.

It does not look behind pointers: no filter can.
"""

import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

EPERM, ENOSYS, EPROTONOSUPPORT, EAFNOSUPPORT = 1, 38, 93, 97

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
PERSONALITIES = (0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, Linux that seems to have 32 bits, each also as version 2.6, and the question which one it is."""
NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
CLONE_NEWTIME = 0x80
"""Of `unshare`; in the flags of `clone` these bits are a signal."""

NEWEST = 469
"""The last system call that Linux 6.17 has, on every architecture (its table: scripts/syscall.tbl)."""


class Where(Enum):
    """`WORKER` is the container of a worker in Compose, in which bubblewrap builds its sandboxes."""

    EVERYWHERE = "everywhere"
    SANDBOX = "sandbox"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Refusal:
    """System calls that fail with `errno`: always, or, of those that look at the argument `index`, when it is one of
    `refused`, has one of `refused_bits` or is none of `allowed`; `given`: only where that argument has that value.
    The kernel takes these arguments for numbers of 32 bits, and so does the filter."""

    names: tuple[str, ...]
    why: str
    errno: int = EPERM
    where: Where = Where.EVERYWHERE
    index: int | None = None
    refused: tuple[int, ...] = ()
    refused_bits: int = 0
    allowed: tuple[int, ...] = ()
    given: tuple[int, int] | None = None


REFUSALS = (
    Refusal(("add_key", "keyctl", "request_key"), "keyrings belong to a user number, not to a sandbox"),
    Refusal(
        ("socket", "socketpair"),
        "other families are not divided by network namespaces (AF_VSOCK reaches the hypervisor) or load kernel modules",
        errno=EAFNOSUPPORT,
        index=0,
        allowed=(AF_UNIX, AF_INET, AF_INET6, AF_NETLINK),
    ),
    Refusal(
        ("socket", "socketpair"),
        "what is behind the other protocols of AF_NETLINK belongs to the whole machine",
        errno=EPROTONOSUPPORT,
        index=2,
        allowed=(NETLINK_ROUTE,),
        given=(0, AF_NETLINK),
    ),
    Refusal(
        ("io_uring_enter", "io_uring_register", "io_uring_setup"),
        "does what a filter refuses, and has had many holes",
        errno=ENOSYS,
    ),
    Refusal(("io_setup",), "takes from a number of requests that the whole machine shares", errno=ENOSYS),
    Refusal(("syslog",), "the kernel's log is the machine's"),
    Refusal(
        ("acct", "quotactl", "quotactl_fd", "swapoff", "swapon", "reboot", "vhangup"), "settings of the whole machine"
    ),
    Refusal(("clock_adjtime", "clock_settime", "settimeofday", "stime"), "the clock is the machine's"),
    Refusal(
        ("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie", "vmsplice"),
        "look into the kernel or hold it up, and have had many holes",
    ),
    Refusal(
        ("create_module", "delete_module", "finit_module", "get_kernel_syms", "init_module", "query_module"),
        "modules are the kernel's own code",
    ),
    Refusal(("kexec_file_load", "kexec_load"), "would start another kernel"),
    Refusal(("open_by_handle_at",), "opens a file past the folders that hide it"),
    Refusal(
        ("kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"),
        "reach into other processes",
    ),
    Refusal(
        ("mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"),
        "place memory on the machine's nodes",
    ),
    Refusal(("ioperm", "iopl"), "reach the machine's ports"),
    Refusal(
        ("nfsservctl", "_sysctl", "sysfs", "uselib", "ustat", "vm86", "vm86old"),
        "are obsolete",
    ),
    Refusal(
        ("ioctl",), "types into the terminal from which a worker was started", index=1, refused=(TIOCSTI, TIOCLINUX)
    ),
    Refusal(
        ("personality",), "takes protections away from programs", where=Where.SANDBOX, index=0, allowed=PERSONALITIES
    ),
    # --- what builds sandboxes: a command has no use for it, and bubblewrap has ---
    Refusal(
        ("clone",),
        "a user namespace of its own opens parts of the kernel that were not written for everybody",
        where=Where.SANDBOX,
        index=0,
        refused_bits=NAMESPACE_FLAGS,
    ),
    Refusal(("unshare",), "as clone", where=Where.SANDBOX, index=0, refused_bits=NAMESPACE_FLAGS | CLONE_NEWTIME),
    Refusal(
        ("clone3",),
        "has its flags in memory, where no filter sees them; without it the C library takes clone",
        errno=ENOSYS,
        where=Where.SANDBOX,
    ),
    Refusal(
        ("mount", "pivot_root", "sethostname", "setdomainname", "umount", "umount2"),
        "change the sandbox's walls",
        where=Where.SANDBOX,
    ),
    Refusal(
        (
            *("chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mount_setattr", "move_mount"),
            *("open_tree", "open_tree_attr", "setns"),
        ),
        "change the walls, and not even bubblewrap takes them",
    ),
    # --- what debuggers need, and no worker ---
    Refusal(("ptrace",), "looks into other processes", where=Where.WORKER),
)
# fmt: off
_NEW = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "set_mempolicy_home_node": 450,
    "open_tree_attr": 467,
}
"""Since 2019 a system call has the same number on every architecture."""
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "ioctl": 16, "socket": 41, "socketpair": 53, "clone": 56, "ptrace": 101, "syslog": 103, "uselib": 134,
        "personality": 135, "ustat": 136, "sysfs": 139, "vhangup": 153, "pivot_root": 155, "_sysctl": 156,
        "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
        "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "create_module": 174,
        "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178, "quotactl": 179,
        "nfsservctl": 180, "io_setup": 206, "lookup_dcookie": 212, "clock_settime": 227, "mbind": 237,
        "set_mempolicy": 238, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
        "migrate_pages": 256, "unshare": 272, "vmsplice": 278, "move_pages": 279, "perf_event_open": 298,
        "fanotify_init": 300, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321,
        "userfaultfd": 323,
    } | _NEW,
    "aarch64": {
        "io_setup": 0, "lookup_dcookie": 18, "ioctl": 29, "umount2": 39, "mount": 40, "pivot_root": 41,
        "nfsservctl": 42, "chroot": 51, "vhangup": 58, "quotactl": 60, "vmsplice": 75, "acct": 89, "personality": 92,
        "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106, "clock_settime": 112,
        "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162, "settimeofday": 170,
        "socket": 198, "socketpair": 199, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220,
        "swapon": 224, "swapoff": 225, "mbind": 235, "set_mempolicy": 237, "migrate_pages": 238, "move_pages": 239,
        "perf_event_open": 241, "fanotify_init": 262, "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "bpf": 280,
        "userfaultfd": 282, "kexec_file_load": 294,
    } | _NEW,
}
"""By architecture, as `platform.machine()` has it: the numbers of what is refused, without calls that an architecture
never had."""
# fmt: on

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _RETURN, _IF_EQUAL, _IF_GREATER, _IF_BITS = 0x20, 0x06, 0x15, 0x25, 0x45
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16


def refused_in(where: Where) -> list[Refusal]:
    """What is refused in a sandbox, or in the container of a worker."""
    return [refusal for refusal in REFUSALS if refusal.where in (Where.EVERYWHERE, where)]


def compiled(machine: str, where: Where = Where.SANDBOX) -> bytes | None:
    """The filter as the kernel reads it (an array of `struct sock_filter`, classic BPF), for one architecture; None
    for an architecture whose numbers are not known here."""
    numbers = NUMBERS.get(machine)
    if numbers is None:
        return None
    of_call: dict[str, list[Refusal]] = {}
    for refusal in refused_in(where):
        for name in refusal.names:
            of_call.setdefault(name, []).append(refusal)
    program = [_load(_ARCH_AT), _jump(_IF_EQUAL, _AUDIT_ARCH[machine], 1, 0), _return(_KILL_PROCESS), _load(_NUMBER_AT)]
    # The x32 form of x86_64 has a bit in its numbers that is above all others, so it is among these.
    program += [_jump(_IF_GREATER, NEWEST, 0, 1), _refuse(ENOSYS)]
    for name, refusals in of_call.items():
        if name in numbers:
            body = _body(refusals)
            program += [_jump(_IF_EQUAL, numbers[name], 0, len(body)), *body]
    return b"".join([*program, _return(_ALLOW)])


def own_filter() -> bytes | None:
    """The filter of a sandbox on this machine."""
    return compiled(platform.machine())


def _body(refusals: Iterable[Refusal]) -> list[bytes]:
    """What happens to one system call, after its number was seen: always ends."""
    body: list[bytes] = []
    for refusal in refusals:
        if refusal.index is None:
            return [*body, _refuse(refusal.errno)]
        test = [_load(_ARGUMENTS_AT + 8 * refusal.index)]
        if refusal.refused_bits:
            test += [_jump(_IF_BITS, refusal.refused_bits, 0, 1), _refuse(refusal.errno)]
        for value in refusal.refused:
            test += [_jump(_IF_EQUAL, value, 0, 1), _refuse(refusal.errno)]
        for left, value in zip(range(len(refusal.allowed), 0, -1), refusal.allowed, strict=True):
            test += [_jump(_IF_EQUAL, value, left, 0)]
        test += [_refuse(refusal.errno)] if refusal.allowed else []
        if refusal.given:
            index, value = refusal.given
            test = [_load(_ARGUMENTS_AT + 8 * index), _jump(_IF_EQUAL, value, 0, len(test)), *test]
        body += test
    return [*body, _return(_ALLOW)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(code, value, if_true, if_false)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)


def _refuse(errno: int) -> bytes:
    return _return(_ERRNO | errno)
