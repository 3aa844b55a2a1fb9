"""A sandbox shares no kernel object: what namespaces do not divide is refused, in every form that the one list has."""

import ctypes
import errno
import json
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agentctl.commands.doctor import State, examine_sandbox
from backplane.errors import Unavailable
from tests.contracts.sandbox.conftest import (
    Run,
    bubblewrap,
    folder,
    isolated,
    isolated_place,
    kubeconfig,
    namespace,
    run,
    sandbox_image,
)
from tests.contracts.sandbox.sandboxes import Place
from tests.system_call_filters import Profile, Verdict, verdict
from worker.sandbox import system_calls
from worker.sandbox.base import Sandbox
from worker.sandbox.container.seccomp import strengthened, worker_profile
from worker.sandbox.local import sandbox as local
from worker.sandbox.local.sandbox import open_local_sandbox
from worker.sandbox.system_calls import NEWEST, NUMBERS, Where, compiled, refused_in

__all__ = ["bubblewrap", "folder", "isolated", "isolated_place", "kubeconfig", "namespace", "run", "sandbox_image"]

PROJECT = Path(__file__).parents[2]
MACHINES = sorted(NUMBERS)
PODMAN_PROFILE = Path("/usr/share/containers/seccomp.json")

VSOCK, ALG, PACKET, BLUETOOTH, NETLINK = 40, 38, 17, 31, 16
NEW_USER, NEW_NET, NEW_TIME, THREAD = 0x10000000, 0x40000000, 0x80, 0x3D0F00
HIGH = 1 << 32
"""The kernel cuts this off the arguments below, so it must hide nothing from a filter."""

CALLS: list[tuple[str, tuple[int, ...], Verdict]] = [
    ("keyctl", (0, 0), errno.EPERM),
    ("add_key", (), errno.EPERM),
    ("request_key", (), errno.EPERM),
    ("socket", (VSOCK, 1, 0), errno.EAFNOSUPPORT),
    ("socket", (VSOCK | HIGH, 1, 0), errno.EAFNOSUPPORT),
    ("socket", (ALG, 5, 0), errno.EAFNOSUPPORT),
    ("socket", (PACKET, 3, 0), errno.EAFNOSUPPORT),
    ("socket", (BLUETOOTH, 3, 0), errno.EAFNOSUPPORT),
    ("socket", (0, 1, 0), errno.EAFNOSUPPORT),
    ("socket", (45, 1, 0), errno.EAFNOSUPPORT),
    ("socketpair", (VSOCK, 1, 0), errno.EAFNOSUPPORT),
    ("socket", (1, 1, 0), "allow"),
    ("socketpair", (1, 1, 0), "allow"),
    ("socket", (2, 1, 6), "allow"),
    ("socket", (10, 2, 0), "allow"),
    ("socket", (NETLINK, 3, 0), "allow"),
    ("socket", (NETLINK, 3, 9), errno.EPROTONOSUPPORT),
    ("socket", (NETLINK, 3, 15), errno.EPROTONOSUPPORT),
    ("io_uring_setup", (), errno.ENOSYS),
    ("io_uring_enter", (), errno.ENOSYS),
    ("io_setup", (), errno.ENOSYS),
    ("bpf", (), errno.EPERM),
    ("perf_event_open", (), errno.EPERM),
    ("userfaultfd", (), errno.EPERM),
    ("syslog", (3,), errno.EPERM),
    ("process_vm_readv", (), errno.EPERM),
    ("pidfd_getfd", (), errno.EPERM),
    ("open_by_handle_at", (), errno.EPERM),
    ("kexec_load", (), errno.EPERM),
    ("init_module", (), errno.EPERM),
    ("finit_module", (), errno.EPERM),
    ("swapon", (), errno.EPERM),
    ("reboot", (), errno.EPERM),
    ("quotactl", (), errno.EPERM),
    ("clock_settime", (), errno.EPERM),
    ("setns", (), errno.EPERM),
    ("fsopen", (), errno.EPERM),
    ("ioctl", (0, 0x5412), errno.EPERM),
    ("ioctl", (0, 0x541C | HIGH), errno.EPERM),
    ("ioctl", (0, 0x5413), "allow"),
    ("ioctl", (0, 0x5401), "allow"),
]
OF_SANDBOX: list[tuple[str, tuple[int, ...], Verdict]] = [
    ("ptrace", (0,), "allow"),
    ("clone", (THREAD,), "allow"),
    ("clone", (17,), "allow"),
    ("clone", (NEW_USER | 17,), errno.EPERM),
    ("clone", (NEW_NET | THREAD,), errno.EPERM),
    ("clone3", (), errno.ENOSYS),
    ("unshare", (0x400,), "allow"),
    ("unshare", (NEW_USER,), errno.EPERM),
    ("unshare", (NEW_TIME,), errno.EPERM),
    ("mount", (), errno.EPERM),
    ("umount2", (), errno.EPERM),
    ("pivot_root", (), errno.EPERM),
    ("personality", (0xFFFFFFFF,), "allow"),
    ("personality", (0,), "allow"),
    ("personality", (0x0040000,), errno.EPERM),
]
OF_WORKER: list[tuple[str, tuple[int, ...], Verdict]] = [
    ("ptrace", (0,), errno.EPERM),
    ("clone", (NEW_USER | 17,), "allow"),
    ("unshare", (NEW_USER,), "allow"),
    ("mount", (), "allow"),
    ("umount2", (), "allow"),
    ("pivot_root", (), "allow"),
    ("sethostname", (), "allow"),
]
PLACES = {Where.SANDBOX: OF_SANDBOX, Where.WORKER: OF_WORKER}


def program(machine: str, where: Where) -> bytes:
    made = compiled(machine, where)
    assert made is not None
    return made


def table(where: Where) -> list[tuple[str, tuple[int, ...], Verdict]]:
    return CALLS + PLACES[where]


# --- the program that the kernel is given, read by a machine of our own ---


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernels_program_refuses_and_allows_what_the_table_says(machine: str, where: Where) -> None:
    numbers = {"ioctl": 29, "socket": 198} if machine == "aarch64" else {"ioctl": 16, "socket": 41}
    numbers = NUMBERS[machine] | numbers
    found = {
        (name, arguments): verdict(program(machine, where), numbers[name], arguments, machine=machine)
        for name, arguments, _ in table(where)
    }
    assert found == {(name, arguments): expected for name, arguments, expected in table(where)}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_that_is_not_on_the_list_is_allowed_and_every_newer_one_does_not_exist(
    machine: str, where: Where
) -> None:
    listed = {name for refusal in refused_in(where) for name in refusal.names}
    on_list = {number for name, number in NUMBERS[machine].items() if name in listed}
    made = program(machine, where)
    verdicts = {number: verdict(made, number, machine=machine) for number in range(NEWEST + 200)}
    assert {number for number in range(NEWEST + 1) if verdicts[number] != "allow"} <= on_list
    assert {verdicts[number] for number in range(NEWEST + 1, NEWEST + 200)} == {errno.ENOSYS}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_family_of_sockets_but_four_is_refused(machine: str) -> None:
    made, number = program(machine, Where.SANDBOX), NUMBERS[machine]["socket"]
    allowed = [family for family in range(300) if verdict(made, number, (family, 1, 0), machine=machine) == "allow"]
    assert allowed == [1, 2, 10, 16]


@pytest.mark.parametrize(("machine", "foreign"), [("x86_64", "i386"), ("aarch64", "arm"), ("x86_64", "aarch64")])
def test_a_call_in_the_form_of_another_architecture_ends_the_process(machine: str, foreign: str) -> None:
    made = program(machine, Where.SANDBOX)
    assert {verdict(made, number, machine=foreign) for number in range(500)} == {"kill"}


def test_the_x32_form_of_a_call_does_not_exist() -> None:
    made, x32 = program("x86_64", Where.SANDBOX), 0x40000000
    assert {verdict(made, x32 | number, machine="x86_64") for number in range(600)} == {errno.ENOSYS}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_is_one_that_a_kernel_loads(machine: str) -> None:
    for where in PLACES:
        made = program(machine, where)
        assert len(made) % 8 == 0
        assert len(made) // 8 <= 4096
        length = len(made) // 8
        for at, (code, if_true, if_false, _) in enumerate(struct.iter_unpack("<HBBI", made)):
            assert code in (0x20, 0x06, 0x15, 0x25, 0x45)
            assert at + 1 + max(if_true, if_false) < length or code == 0x06


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not here")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    # The headers of a machine may be older than the newest call of the list.
    assert {name: int(found.get(name, number)) for name, number in NUMBERS[machine].items()} == NUMBERS[machine]
    assert {name for name in NUMBERS[machine] if name not in found} <= {"open_tree_attr"}
    listed = {name for refusal in system_calls.REFUSALS for name in refusal.names}
    assert (listed & found.keys()) - NUMBERS[machine].keys() == set()


# --- the profiles that engines are given ---


def test_the_profile_of_the_workers_container_in_compose_is_the_one_of_the_list() -> None:
    file = PROJECT / "compose" / "seccomp-worker.json"
    assert file.read_text() == worker_profile(), f"python -m worker.sandbox.container.seccomp > {file.name}"


def test_the_profile_of_the_workers_container_refuses_and_allows_what_the_table_says() -> None:
    profile = Profile.read(worker_profile())
    for name, arguments, expected in table(Where.WORKER):
        assert profile.verdict(name, arguments) == expected, (name, arguments)


@pytest.fixture
def engines_profile() -> str:
    if PODMAN_PROFILE.exists():
        return PODMAN_PROFILE.read_text()
    names = [name for name, _, _ in table(Where.SANDBOX)]
    rules = [{"names": [*names, "read"], "action": "SCMP_ACT_ALLOW"}]
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": rules})


def test_an_engines_profile_is_made_to_refuse_what_the_table_says(engines_profile: str) -> None:
    profile = Profile.read(strengthened(engines_profile))
    for name, arguments, expected in table(Where.SANDBOX):
        if name == "ioctl":
            continue  # a container has no terminal
        found = profile.verdict(name, arguments)
        assert (found == "allow") == (expected == "allow"), (name, arguments, found)
    assert profile.verdict("read") == "allow"


def test_what_an_engine_forbids_stays_forbidden() -> None:
    strict = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
    profile = Profile.read(strengthened(json.dumps(strict)))
    for name, arguments, _ in table(Where.SANDBOX):
        assert profile.verdict(name, arguments) != "allow", name


# --- in a sandbox ---

PROBE = """
import ctypes, errno, json, mmap, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
numbers = json.loads(os.environ["NUMBERS"])[platform.machine()]
found = []
def call(name, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(numbers[name]), *[ctypes.c_long(each) for each in arguments]) >= 0:
        found.append(name)
    elif ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        found.append(f"{name}: {errno.errorcode[ctypes.get_errno()]}")
space = mmap.mmap(-1, 4096)
place = ctypes.addressof(ctypes.c_char.from_buffer(space))
call("keyctl", 0, -3, 0)
call("keyctl", 1, 0)
call("add_key", place, place, place, 1, -3)
call("request_key", place, place, 0, -3)
call("io_uring_setup", 4, place)
call("io_setup", 4, place + 64)
call("bpf", 0, place, 64)
call("perf_event_open", place, 0, -1, -1, 0)
call("userfaultfd", 1)
call("syslog", 3, place, 4096)
call("clone3", place, 8)
call("unshare", 0x10000000)
call("setns", 0, 0)
call("mount", 0, place, 0, 0, 0)
call("open_by_handle_at", -1, place, 0)
call("process_vm_readv", os.getpid(), place, 0, place, 0, 0)
call("kexec_load", 0, 0, 0, 0)
call("finit_module", -1, place, 0)
call("clock_settime", 0, place)
call("quotactl", 0, 0, 0, 0)
call("reboot", 0, 0, 0, 0)
call("swapon", place, 0)
for family in range(46):
    if family not in (1, 2, 10, 16):
        for kind in (1, 2, 3, 5):
            try:
                socket.socket(family, kind).close()
                found.append(f"family {family}")
            except OSError:
                pass
for protocol in range(1, 24):
    try:
        socket.socket(16, 3, protocol).close()
        found.append(f"netlink {protocol}")
    except OSError:
        pass
for path in ("/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/kcore", "/dev/kmsg", "/dev/vsock", "/dev/mem"):
    try:
        if open(path, "rb").read(64):
            found.append(path)
    except OSError:
        pass
print(json.dumps(sorted(set(found))))
"""


async def test_what_namespaces_do_not_divide_is_refused_in_a_sandbox(
    isolated: Sandbox, isolated_place: Place, run: Run
) -> None:
    environment = {"NUMBERS": json.dumps(NUMBERS)}
    outcome, said = await run(isolated, "python3", "-c", PROBE, environment=environment)
    # A pod cannot hide more of /proc than its engine does. This file has numbers of keys only.
    left = ["/proc/key-users"] if isolated_place.kind == "kubernetes" else []
    assert (outcome.exit_code, set(json.loads(said)) - set(left)) == (0, set())


async def test_a_key_of_the_worker_is_neither_read_nor_seen_and_none_is_left_for_the_next(
    bubblewrap: Sandbox, run: Run
) -> None:
    libc, numbers = ctypes.CDLL(None, use_errno=True), NUMBERS[platform.machine()]
    session, name = -3, b"a-key-of-the-worker"
    key = libc.syscall(numbers["add_key"], b"user", name, b"platform-secret", 15, session)
    if key < 0:
        pytest.skip(f"this process may keep no key: {errno.errorcode[ctypes.get_errno()]}")
    try:
        script = f"""
import ctypes
libc = ctypes.CDLL(None)
held = ctypes.create_string_buffer(64)
print(libc.syscall({numbers["keyctl"]}, 11, {key}, held, 64), held.value)
print(libc.syscall({numbers["keyctl"]}, 10, -3, b"user", {name!r}, 0))
print(libc.syscall({numbers["add_key"]}, b"user", b"left-behind", b"x", 1, -4))
try:
    print({name.decode()!r} in open("/proc/keys").read())
except OSError:
    print(False)
"""
        _, said = await run(bubblewrap, "python3", "-c", script)
        assert said == "-1 b''\n-1\n-1\nFalse\n"
    finally:
        libc.syscall(numbers["keyctl"], 9, key, session)  # unlinks it


ORDINARY = {
    "python3": (
        "import asyncio, multiprocessing, socket, sqlite3, subprocess, threading\n"
        "threads = [threading.Thread(target=int) for _ in range(8)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(subprocess.check_output(['echo', 'x'])); sqlite3.connect('x.db').execute('create table x(y)')\n"
        "multiprocessing.get_context('fork').Pool(2).map(abs, [1, -1]); socket.create_server(('127.0.0.1', 0))\n"
        "asyncio.run(asyncio.sleep(0)); socket.getaddrinfo('localhost', 80); socket.if_nameindex()",
        "-c",
    ),
    "git": ("git init -q . && git -c user.name=n -c user.email=e commit -q --allow-empty -m x && git log", "-c"),
    "gcc": (
        'echo "#include <pthread.h>\nvoid *f(void *a){return a;} int main(){pthread_t t;'
        'return pthread_create(&t,0,f,0)||pthread_join(t,0);}" > a.c && gcc -pthread a.c -o a && ./a',
        "-c",
    ),
    "node": (
        "require('fs').promises.readFile('/etc/hosts').then(() => require('child_process').execSync('true'));"
        "require('http').createServer().listen(0, function () { this.close() })",
        "-e",
    ),
    "tmux": ("tmux -L x new-session -d 'sleep 5' && tmux -L x kill-server; script -qc true /dev/null", "-c"),
}
AS_SHELL = {"git", "gcc", "tmux"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDINARY)
async def test_ordinary_programs_go_on_working(bubblewrap: Sandbox, run: Run, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not here")
    script, option = ORDINARY[name]
    shell = "sh" if name in AS_SHELL else name
    outcome, said = await run(bubblewrap, shell, option, script, memory_bytes=2**32, processes=128)
    assert outcome.exit_code == 0, said


@pytest.mark.slow
async def test_java_goes_on_working(bubblewrap: Sandbox, run: Run) -> None:
    if shutil.which("java") is None:
        pytest.skip("java is not here")
    outcome, said = await run(bubblewrap, "java", "-version", memory_bytes=2**33, processes=128)
    assert outcome.exit_code == 0, said


async def test_a_program_of_32_bits_is_ended_and_nothing_else(bubblewrap: Sandbox, run: Run) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("only x86_64 has the call int 0x80")
    # mov eax, 20; int 0x80; ret: getpid as programs of 32 bits make it.
    script = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    outcome, said = await run(bubblewrap, "sh", "-c", 'python3 -c "$0"; echo $?', script)
    assert (outcome.exit_code, said.split()[-1]) == (0, str(128 + 31))


def test_bubblewrap_builds_its_walls_under_the_profile_of_the_workers_container(tmp_path: Path) -> None:
    worker = f"""
import asyncio, ctypes, platform
from pathlib import Path
from tests.contracts.sandbox.sandboxes import ignore, new_command
from worker.sandbox.local.sandbox import open_local_sandbox
from worker.sandbox.kubernetes.pod.machine import filter_system_calls
from worker.sandbox.system_calls import Where, compiled

async def main():
    filter_system_calls(compiled(platform.machine(), Where.WORKER))
    sandbox = await open_local_sandbox(require_isolation=True)
    script = "unshare -U true || grep -c Seccomp_filters:.2 /proc/self/status"
    print((await sandbox.run(new_command("sh", "-c", script), Path({str(tmp_path)!r}), print, ignore)).exit_code)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", worker], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "0", ended.stderr
    assert "1\\n'" in ended.stdout


# --- where there is no filter ---


async def test_an_architecture_whose_numbers_are_not_known_is_refused_where_isolation_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="system calls are not filtered"):
        await open_local_sandbox(require_isolation=True)


async def test_an_architecture_whose_numbers_are_not_known_is_named_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bubblewrap: Sandbox
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    sandbox = await open_local_sandbox(require_isolation=False)
    assert (sandbox.isolation.isolated, sandbox.isolation.filtered) == (True, False)
    assert local.NO_FILTER in sandbox.isolation.missing
    said = capsys.readouterr()
    assert "MAY MAKE ANY SYSTEM CALL" in said.out + said.err


@pytest.mark.parametrize(
    ("isolated", "filtered", "required", "state"),
    [
        (True, True, True, State.OK),
        (True, False, False, State.WARNING),
        (False, False, False, State.WARNING),
        (False, False, True, State.MISSING),
    ],
)
def test_doctor_warns_of_a_sandbox_without_a_filter(
    isolated: bool, filtered: bool, required: bool, state: State
) -> None:
    found = examine_sandbox(
        {"name": "bubblewrap", "isolated": isolated, "filtered": filtered, "missing": local.NO_FILTER},
        required=required,
    )
    assert (found.state, found.hint) == (state, local.NO_FILTER)
    assert ("SYSTEM CALLS NOT FILTERED" in found.found) == (isolated and not filtered)
