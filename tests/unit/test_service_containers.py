"""What is to be done about a service's container, and how it is started."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backplane.containers.engine import PresentContainer
from backplane.domain.services import ContainerSpec, Service, ServiceSpec
from controller.services.container_plan import ContainerAction, ServicesHost, action_for, digest_of, run_words

NOW = datetime(2026, 11, 30, tzinfo=UTC)
RULES = ServicesHost("127.0.0.1", "p1")
CONTAINER = ContainerSpec(
    image="docker.io/library/redis:8",
    command=("redis-server", "--appendonly", "yes"),
    environment={"A": "b=c $D"},
    volumes={"data": "/data"},
    port=6380,
)
SERVICE = Service("s1", "o", "redis", ServiceSpec(port=6379, container=CONTAINER), 1, NOW, NOW)
DECLARED = digest_of(SERVICE, RULES)


def present(state: str = "running", declared: str = DECLARED) -> PresentContainer:
    return PresentContainer("c", "agent-service-redis", {"agent-platform.declared": declared}, state)


CASES: dict[str, tuple[Service | None, PresentContainer | None, ContainerAction]] = {
    "nothing is there": (SERVICE, None, ContainerAction.RUN),
    "it runs as declared": (SERVICE, present(), ContainerAction.NOTHING),
    "the engine restarts it": (SERVICE, present("restarting"), ContainerAction.NOTHING),
    "it has ended": (SERVICE, present("exited"), ContainerAction.START),
    "it never started": (SERVICE, present("created"), ContainerAction.START),
    "it was declared otherwise": (SERVICE, present(declared="x"), ContainerAction.REPLACE),
    "it ended and was declared otherwise": (SERVICE, present("exited", "x"), ContainerAction.REPLACE),
    "the service is being deleted": (replace(SERVICE, deleted_at=NOW), present(), ContainerAction.REMOVE),
    "the service names no image any more": (
        replace(SERVICE, spec=ServiceSpec(port=1)),
        present(),
        ContainerAction.REMOVE,
    ),
    "there is no such service": (None, present(), ContainerAction.REMOVE),
    "there is neither": (None, None, ContainerAction.NOTHING),
    "an observed service": (replace(SERVICE, spec=ServiceSpec(port=1)), None, ContainerAction.NOTHING),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_done_follows_from_what_is_declared_and_what_is_there(case: str) -> None:
    service, container, action = CASES[case]
    assert action_for(service, container, DECLARED) is action


@pytest.mark.parametrize(
    "changed",
    [
        replace(SERVICE, spec=replace(SERVICE.spec, port=1)),
        replace(SERVICE, spec=replace(SERVICE.spec, container=replace(CONTAINER, image="redis:9"))),
        replace(SERVICE, spec=replace(SERVICE.spec, container=replace(CONTAINER, environment={}))),
    ],
)
def test_a_container_is_another_one_when_what_it_is_made_of_changes(changed: Service) -> None:
    assert digest_of(changed, RULES) != DECLARED
    assert digest_of(changed, replace(RULES, bind="0.0.0.0")) != digest_of(changed, RULES)


def test_a_container_stays_when_only_its_check_changes() -> None:
    checked = replace(SERVICE, spec=replace(SERVICE.spec, host="10.0.0.1", description="x"), revision=2)
    assert digest_of(checked, RULES) == DECLARED


def test_a_container_is_labelled_bounded_and_mounts_no_folder_of_the_host() -> None:
    words = [word for word in run_words(SERVICE, RULES, "") if not word.lower().endswith("_proxy=")]
    assert words == [
        "--name=agent-service-redis",
        "--label=agent-platform.platform=p1",
        "--label=agent-platform.service=s1",
        f"--label=agent-platform.declared={DECLARED}",
        "--restart=unless-stopped",
        "--publish=127.0.0.1:6379:6380",
        "--env=A=b=c $D",
        "--volume=agent-service-redis-data:/data",
        "--memory=1073741824",
        "--cpus=1",
        "--pids-limit=4096",
        "--security-opt=no-new-privileges",
        "--log-driver=json-file",
        "--log-opt=max-size=10m",
        "docker.io/library/redis:8",
        *("redis-server", "--appendonly", "yes"),
    ]
    assert "--env-file=/s/redis.env" in run_words(SERVICE, RULES, "/s/redis.env")


def test_a_container_has_no_proxy_but_its_own() -> None:
    container = replace(CONTAINER, environment={"HTTPS_PROXY": "http://own"})
    service = replace(SERVICE, spec=replace(SERVICE.spec, container=container))
    words = set(run_words(service, RULES, "/s/redis.env", "# proxies\nNO_PROXY=a,b\n"))
    assert {"--env=HTTPS_PROXY=http://own", "--env=HTTP_PROXY=", "--env=https_proxy=", "--env=no_proxy="} <= words
    assert not [word for word in words if word.startswith("--env=NO_PROXY=")]
