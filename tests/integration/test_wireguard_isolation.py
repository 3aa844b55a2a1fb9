"""scripts/wireguard_isolation.sh in network namespaces: a hub that forwards, and two peers and the server at its wg0.

A link of type wireguard cannot be made everywhere, so wg0 is a virtual cable. As with WireGuard, peers reach one
another by way of the hub alone.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.network_namespaces import Namespace, namespaces
from tests.servers import Missing

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "wireguard_isolation.sh"
PORT = 7000
REFUSED_PORT = 9999
"""The hub's own rules forbid it."""
SERVER, ONE, OTHER = 10, 2, 3
IPV6 = {"WG_SUBNET6": "fd00:10::/64", "WG_SERVER6": f"fd00:10::{SERVER}"}
ALL = {f"{kind}{version}" for kind in ("icmp", "tcp", "udp") for version in (4, 6)}
FOUR = {name for name in ALL if name.endswith("4")}

# Answers all that is sent to it, over TCP and UDP.
ECHO = """
import socket, sys, threading
def serve(connection):
    while data := connection.recv(100):
        connection.sendall(data)
def accept(listening):
    while True:
        threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
def answer(udp):
    while True:
        udp.sendto(*udp.recvfrom(100))
for port in map(int, sys.argv[1:]):
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    threading.Thread(target=accept, args=(tcp,), daemon=True).start()
    threading.Thread(target=answer, args=(udp,), daemon=True).start()
print("listening", flush=True)
sys.stdin.read()
"""

# Tries all ways to a host at once, and prints by which of them an answer came.
PROBE = """
import json, socket, struct, sys, threading
host, port, patience = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
ADDRESS = {4: f"10.0.0.{host}", 6: f"fd00:10::{host}"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
def icmp(version):
    protocol, kind = {4: (socket.IPPROTO_ICMP, 8), 6: (socket.IPPROTO_ICMPV6, 128)}[version]
    raw = socket.socket(FAMILY[version], socket.SOCK_RAW, protocol)
    raw.settimeout(patience)
    body = b"from the test 12"
    empty = struct.pack("!BBHHH", kind, 0, 0, 4321, 1) + body
    raw.sendto(struct.pack("!BBHHH", kind, 0, checksum(empty), 4321, 1) + body, (ADDRESS[version], 0))
    while True:
        data, sender = raw.recvfrom(1000)
        header = data[20:] if version == 4 else data
        if sender[0] == ADDRESS[version] and header[0] == {4: 0, 6: 129}[version] and header.endswith(body):
            return
def tcp(version):
    with socket.create_connection((ADDRESS[version], port), patience) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
def udp(version):
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sending:
        sending.settimeout(patience)
        sending.sendto(b"x", (ADDRESS[version], port))
        assert sending.recv(1) == b"x"
reached = []
def attempt(way, version):
    try:
        way(version)
    except OSError:
        return
    reached.append(f"{way.__name__}{version}")
ways = [threading.Thread(target=attempt, args=(way, version)) for way in (icmp, tcp, udp) for version in (4, 6)]
for way in ways: way.start()
for way in ways: way.join()
print(json.dumps(reached))
"""

# A connection that stays open: each line on standard input is sent, and what came back is printed.
TALK = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
connection.settimeout(float(sys.argv[3]))
print("open", flush=True)
for line in sys.stdin:
    connection.sendall(line.encode())
    try:
        print(connection.recv(100).decode().strip(), flush=True)
    except TimeoutError:
        print("no answer", flush=True)
"""


@dataclass
class Network:
    """`path`: where the script finds its programs, which decides whether it uses nftables or iptables."""

    hub: Namespace
    peers: dict[int, Namespace]
    path: str
    firewall: str

    def script(self, action: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.hub.words(str(SCRIPT), action),
            env={"PATH": self.path, **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def do(self, action: str, **settings: str) -> str:
        done = self.script(action, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reached(self, sender: int, target: int, *, port: int = PORT, patience: float = 3.0) -> set[str]:
        probe = self.peers[sender].python(PROBE, str(target), str(port), str(patience))
        return set(json.loads(probe.communicate(timeout=60)[0]))

    def rules(self) -> str:
        """All rules of the hub, without how often each was used."""
        listed = self.hub.sh("nft list ruleset; iptables-save; ip6tables-save")
        listed = re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]", "", listed)
        return "\n".join(line for line in listed.splitlines() if not line.startswith("#"))

    def dropped(self) -> int:
        """Packets."""
        if self.firewall == "nft":
            return int(re.findall(r"counter packets (\d+) bytes \d+ drop", self.do("status"))[0])
        return sum(map(int, re.findall(r"^\s*(\d+)\s+\d+\s+DROP", self.do("status"), re.MULTILINE)))


@pytest.fixture(scope="module", params=["nft", "iptables"])
def wired(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    firewall = request.param
    with contextlib.ExitStack() as stack:
        try:
            hub, switch, *others = stack.enter_context(namespaces(5, "ip", "nft", "iptables", "ip6tables"))
        except Missing as missing:
            if os.environ.get("CI"):
                pytest.fail(f"needs {missing}", pytrace=False)
            pytest.skip(f"needs {missing}")
        peers = dict(zip((ONE, OTHER, SERVER), others, strict=True))
        # A switch whose ports see the hub alone.
        switch.sh("ip link add bridge type bridge mcast_snooping 0; ip link set bridge up")
        for number, namespace in {1: hub, **peers}.items():
            switch.sh(f"ip link add port{number} type veth peer name wg0 netns {namespace.pid}")
            switch.sh(f"ip link set port{number} master bridge up")
            if namespace is not hub:
                switch.sh(f"bridge link set dev port{number} isolated on")
                namespace.sh(
                    # The hub says that there is a shorter way, which there is not.
                    "echo 0 > /proc/sys/net/ipv6/conf/wg0/accept_redirects;"
                    f"ip link set lo up; ip addr add 10.0.0.{number}/32 dev wg0;"
                    f"ip addr add fd00:10::{number}/128 dev wg0 nodad; ip link set wg0 up;"
                    "ip route add 10.0.0.1 dev wg0; ip route add 10.0.0.0/24 via 10.0.0.1;"
                    "ip -6 route add fd00:10::1 dev wg0; ip -6 route add fd00:10::/64 via fd00:10::1"
                )
                echo = namespace.python(ECHO, str(PORT), str(REFUSED_PORT))
                stack.enter_context(echo)
                stack.callback(echo.kill)
                assert echo.stdout is not None
                assert echo.stdout.readline()
        hub.sh(
            "ip addr add 10.0.0.1/24 dev wg0; ip addr add fd00:10::1/64 dev wg0 nodad; ip link set lo up;"
            "cd /proc/sys/net; echo 1 > ipv4/ip_forward; echo 1 > ipv6/conf/all/forwarding;"
            "for one in all default wg0; do echo 0 > ipv4/conf/$one/send_redirects; done; ip link set wg0 up"
        )
        path = os.environ["PATH"]
        if firewall == "iptables":
            folder = tmp_path_factory.mktemp("programs")
            for program in (
                "env",
                "bash",
                "id",
                "grep",
                "iptables",
                "ip6tables",
                "iptables-restore",
                "ip6tables-restore",
            ):
                (folder / program).symlink_to(Path(shutil.which(program) or program))
            path = str(folder)
        yield Network(hub, peers, path, firewall)


@pytest.fixture
def network(wired: Network) -> Iterator[Network]:
    """The hub has rules of its own."""
    wired.hub.sh(
        "nft -f -",
        stdin="table inet own {\n chain forward {\n type filter hook forward priority 0; policy accept;"
        f" tcp dport {REFUSED_PORT} counter drop;\n}}\n}}\n",
    )
    wired.hub.sh(
        f"for one in iptables ip6tables; do $one -A FORWARD -p udp --dport {REFUSED_PORT} -j DROP;"
        " $one -N OWN; $one -A FORWARD -j OWN; done"
    )
    yield wired
    wired.hub.sh("nft flush ruleset")


def test_without_the_rules_peers_reach_each_other(network: Network) -> None:
    assert network.reached(ONE, OTHER) == ALL
    assert network.script("status").returncode == 1


def test_with_the_rules_peers_reach_the_server_and_not_each_other(network: Network) -> None:
    network.do("up", **IPV6)
    assert (network.reached(ONE, SERVER), network.dropped()) == (ALL, 0)
    assert network.reached(ONE, OTHER, patience=0.5) == set()
    assert network.dropped() >= len(ALL)


def test_the_server_answers_peers_and_opens_nothing_to_them(network: Network) -> None:
    network.do("up", **IPV6)
    assert network.reached(OTHER, SERVER) == ALL
    assert network.reached(SERVER, OTHER, patience=0.5) == set()


def test_without_an_ipv6_server_nothing_goes_over_ipv6(network: Network) -> None:
    network.do("up")
    assert network.reached(ONE, SERVER, patience=1.0) == FOUR


def test_a_connection_of_two_peers_that_was_open_before_the_rules_is_cut(network: Network) -> None:
    network.hub.sh("nft add rule inet own forward ct state established accept")  # connections are tracked from now on
    talk = network.peers[ONE].python(TALK, f"10.0.0.{OTHER}", str(PORT), "1.0")
    assert talk.stdin is not None
    assert talk.stdout is not None
    with talk:
        assert talk.stdout.readline() == "open\n"
        print("before", file=talk.stdin, flush=True)
        assert talk.stdout.readline() == "before\n"
        network.do("up")
        print("after", file=talk.stdin, flush=True)
        assert talk.stdout.readline() == "no answer\n"
        talk.kill()


def test_the_second_time_the_rules_are_the_same(network: Network) -> None:
    network.do("up", **IPV6)
    first = network.rules()
    network.do("up", **IPV6)
    assert network.rules() == first


def test_the_rules_follow_the_settings_of_the_last_time(network: Network) -> None:
    network.do("up", WG_SERVER="10.0.0.99")
    assert network.reached(ONE, SERVER, patience=0.5) == set()
    network.do("up", **IPV6)
    assert network.reached(ONE, SERVER) == ALL


def test_the_own_rules_of_the_hub_survive_and_still_count(network: Network) -> None:
    before = network.rules()
    network.do("up", **IPV6)
    assert network.reached(ONE, SERVER, port=REFUSED_PORT, patience=0.5) == {"icmp4", "icmp6"}
    network.do("down")
    assert network.rules() == before
    network.do("up", **IPV6)
    assert network.reached(ONE, OTHER, patience=0.5) == set()
    network.do("down")
    network.do("down")
    assert network.rules() == before


def test_a_rule_of_the_hub_that_was_put_before_ours_later_is_overtaken_by_the_next_up(network: Network) -> None:
    network.do("up", **IPV6)
    network.hub.sh("iptables -I FORWARD 1 -j ACCEPT; ip6tables -I FORWARD 1 -j ACCEPT")
    network.do("up", **IPV6)
    assert network.reached(ONE, OTHER, patience=0.5) == set()


def test_each_interface_has_rules_of_its_own(network: Network) -> None:
    network.do("up", **IPV6)
    rules = network.rules()
    network.do("up", WG_INTERFACE="wg1", WG_SUBNET="10.1.0.0/16", WG_SERVER="10.1.2.3")
    assert network.rules() != rules
    network.do("down", WG_INTERFACE="wg1")
    assert network.rules() == rules


@pytest.mark.parametrize("wired", ["iptables"], indirect=True)
def test_rules_of_iptables_are_removed_when_nftables_has_come(network: Network) -> None:
    before = network.rules()
    network.do("up", **IPV6)
    with_nftables = replace(network, path=os.environ["PATH"], firewall="nft")
    with_nftables.do("up", **IPV6)
    assert network.hub.sh("iptables-save").count("WG_PEERS") == 0
    with_nftables.do("down")
    assert network.rules() == before
