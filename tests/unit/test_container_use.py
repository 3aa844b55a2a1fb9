"""What containers use: as engines and clusters write it, and as it is shown."""

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from backplane.containers.use import ContainerUse, parse_use
from backplane.errors import Unavailable
from controller.containers.kubernetes import of_pod
from controller.containers.loop import CannotBeRead, ContainerUseLoop
from controller.containers.metrics import ContainerUseMetrics
from tests.metrics import Scraped, broken_conventions, parsed


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("12.50%\t1.5MiB / 2GiB\t1.2kB / 648B", ContainerUse(0.125, 1_572_864, 1200, 648)),  # Docker
        ("250.00%\t12.3MB / 2.1GB\t0B / 0B", ContainerUse(2.5, 12_300_000, 0, 0)),  # Podman
        ("--\t-- / --\t--", ContainerUse()),
        ("NaN%\t0B / 0B\t-- / --", ContainerUse()),
    ],
)
def test_the_lines_of_both_engines_are_understood(line: str, found: ContainerUse) -> None:
    assert list(parse_use(f"{line}\n")) == [found]


@pytest.mark.parametrize("line", ["1%\t1 elephant / 2\t0B / 0B", "no columns", "x%\t1B / 1B\t0B / 0B"])
def test_another_line_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_use(line)


def test_a_pod_uses_what_its_containers_do() -> None:
    pod = {
        "containers": [
            {"usage": {"cpu": "250000000n", "memory": "1024Ki"}},
            {"usage": {"cpu": "1", "memory": "1Mi"}},
            {"usage": {"cpu": "?"}},
        ]
    }
    assert of_pod(pod) == ContainerUse(1.25, 2 * 1024 * 1024)


class Place:
    """Answers in turn: what containers use, or an error."""

    def __init__(self, *answers: Sequence[ContainerUse] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def use(self) -> Sequence[ContainerUse]:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Shown:
    def __init__(self, place: Place) -> None:
        self._registry = CollectorRegistry()
        self.loop = ContainerUseLoop({"service": place}, ContainerUseMetrics(self._registry), period_seconds=0)

    async def look(self) -> Scraped:
        await self.loop.look()
        found = parsed(generate_latest(self._registry).decode())
        assert broken_conventions(found.families) == []
        return found


async def test_the_containers_of_a_kind_are_added_up_and_none_is_named() -> None:
    shown = Shown(Place([ContainerUse(0.5, 100, 1, 2), ContainerUse(1, 50, 10, 20)]))
    found = await shown.look()
    assert [found.value(f"agent_containers{name}", kind="service") for name in ("", "_cpu_cores", "_memory_bytes")] == [
        2, 1.5, 150,
    ]  # fmt: skip
    sides = ("received", "sent")
    assert [found.value("agent_containers_network_bytes", direction=side) for side in sides] == [11, 22]
    assert all(set(labels) <= {"kind", "direction"} for labels in found.labels("agent_containers"))


async def test_what_cannot_be_read_now_is_missing_and_comes_back() -> None:
    shown = Shown(Place([ContainerUse()], Unavailable("away", part="containers"), [ContainerUse()]))
    counts = [(await shown.look()).labels("agent_containers") for _ in range(3)]
    assert counts == [[{"kind": "service"}], [], [{"kind": "service"}]]


async def test_what_can_never_be_read_is_asked_once() -> None:
    place = Place(CannotBeRead("404 there is no metrics API"))
    shown = Shown(place)
    for _ in range(3):
        assert (await shown.look()).labels("agent_containers") == []
    assert place.asked == 1
