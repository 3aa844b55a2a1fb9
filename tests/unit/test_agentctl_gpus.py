"""`agentctl gpus` as people and scripts rely on it."""

import json

import pytest

from tests.scripted_api import answer, raw
from tests.unit.conftest import Agentctl, Script

MACHINE = {
    "id": "0123456789ab",
    "status": "starting",
    "provider": "vastai",
    "gpu_type": "RTX_4090",
    "gpu_count": 1,
    "image": "ollama/ollama",
    "reason": "it has not loaded m yet",
    "usd_per_hour": "0.35",
    "usd_booked": "1.4",
}
OFFER = {"id": "7", "gpu_type": "RTX_4090", "gpu_count": 1, "usd_per_hour": "0.35", "gpu_ram_gb": 24.0}
FLEET = {
    "looked_at": None,
    "waiting": 37,
    "decision": "nothing changes",
    "error": "",
    "usd_per_hour": "0.35",
    "usd_today": "3.21",
    "usd_per_hour_max": "2.5",
    "usd_per_day_max": "30",
    "offers": [{**OFFER, "reliability": None}],
}


def test_machines_are_listed_with_what_they_cost_and_why_they_wait(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"instances": [MACHINE]}))
    _, printed, _ = agentctl("gpus", "list")
    row = printed.splitlines()[1]
    assert row.split()[:7] == ["0123456789ab", "starting", "1", "x", "RTX_4090", "$0.35", "$1.4"]
    assert "ended=false" in api.requests[0].path


def test_offers_are_listed(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, FLEET))
    _, printed, _ = agentctl("gpus", "offers")
    assert printed.splitlines()[1].split() == ["7", "1", "x", "RTX_4090", "$0.35", "24", "GB"]


def test_a_machine_is_asked_for_with_what_is_named_alone(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(202, MACHINE))
    code, printed, _ = agentctl("gpus", "start", "--gpu-count", "2")
    assert (code, json.loads(api.requests[0].body)) == (0, {"gpu_count": 2})
    assert "0123456789ab is wanted; `agentctl gpus explain 0123456789ab`" in printed


def test_a_machine_is_stopped(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(202, {**MACHINE, "status": "draining"}))
    _, printed, _ = agentctl("gpus", "stop", "0123456789ab")
    assert "0123456789ab is draining" in printed
    assert (api.requests[0].method, api.requests[0].path) == ("DELETE", "/api/vastai/instances/0123456789ab")


def test_all_machines_or_one_are_explained(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, FLEET), answer(200, {"text": "Machine x is ready.", "instance": MACHINE, "charges": []}))
    _, fleet, _ = agentctl("gpus", "explain")
    assert "nothing changes" in fleet
    assert "$3.21 of $30" in fleet
    _, one, _ = agentctl("gpus", "explain", "0123456789ab")
    assert one.strip() == "Machine x is ready."


@pytest.mark.parametrize("command", [("list",), ("offers",), ("explain",), ("start",)])
def test_json_is_what_the_api_gave(script: Script, agentctl: Agentctl, command: tuple[str, ...]) -> None:
    given = {"instances": [MACHINE], **FLEET} if command != ("start",) else MACHINE
    script(answer(200, given))
    _, printed, _ = agentctl("gpus", *command, "--json")
    assert json.loads(printed) in (given, [MACHINE], FLEET["offers"])


def test_a_wrong_count_asks_nobody(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(500, b""))
    assert agentctl("gpus", "start", "--gpu-count", "0")[0] == 2
    assert api.requests == []
