"""What scripts/wireguard_isolation.sh refuses at once. Tests in namespaces show what its rules do."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "wireguard_isolation.sh"

REFUSED = {
    "an interface with a space": ({"WG_INTERFACE": "wg0 wg1"}, "WG_INTERFACE"),
    "an interface that is a rule": ({"WG_INTERFACE": 'wg0"; flush ruleset; #'}, "WG_INTERFACE"),
    "an interface whose name is too long": ({"WG_INTERFACE": "w" * 16}, "WG_INTERFACE"),
    "a subnet without a length": ({"WG_SUBNET": "10.0.0.0"}, "WG_SUBNET"),
    "a subnet of everybody": ({"WG_SUBNET": "10.0.0.0/0"}, "WG_SUBNET"),
    "a number that no address has": ({"WG_SERVER": "10.0.0.256"}, "WG_SERVER"),
    "a server with a name": ({"WG_SERVER": "server.example.org"}, "WG_SERVER"),
    "a server outside of the subnet": ({"WG_SERVER": "10.0.1.10"}, "not in WG_SUBNET"),
    "an IPv6 server without its subnet": ({"WG_SERVER6": "fd00::10"}, "WG_SUBNET6"),
    "an IPv6 subnet without its server": ({"WG_SUBNET6": "fd00::/64"}, "WG_SERVER6"),
}


def call(action: str, settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], **settings}
    return subprocess.run([SCRIPT, action], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_cannot_be_is_refused_by_its_name(case: str) -> None:
    settings, named = REFUSED[case]
    done = call("status", settings)
    assert (done.returncode, named in done.stderr) == (1, True), done.stderr


def test_an_unknown_action_is_refused_with_those_there_are() -> None:
    done = call("restart", {})
    assert (done.returncode, "up, down or status" in done.stderr) == (1, True), done.stderr
