"""What is done about a deployment's containers: each case of the decision."""

from datetime import timedelta
from pathlib import Path

import pytest

from backplane.containers.engine import PresentContainer
from backplane.domain.deployments import Rollout
from controller.deployments.containers.plan import (
    CONTENT_LABEL,
    HEALTH_LABEL,
    HOPELESS_AFTER,
    REVISION_LABEL,
    ContainerHost,
    ReplicaContainer,
    changes_of,
    content_of,
    health_of,
    number_wanted,
    replica_words,
    rollout_of_containers,
)
from tests.deployed_agents import NOW, agent_manifest, deployment_of, revision_of

HOST = ContainerHost("f" * 32, "127.0.0.1", Path("/secrets"))
NEW, OLD = "n" * 16, "o" * 16


def one(
    number: int, content: str = NEW, *, ready: bool = True, state: str = "running", restarts: int = 0
) -> ReplicaContainer:
    labels = {CONTENT_LABEL: content, REVISION_LABEL: "1"}
    name = f"greeter-{content[:8]}-{number}"
    present = PresentContainer(name, name, labels, state, restarts=restarts, made_at=NOW - HOPELESS_AFTER)
    return ReplicaContainer(present, is_ready=ready and state == "running", words="" if ready else "does not answer")


def names(*numbers: int, content: str = NEW) -> list[str]:
    return [f"greeter-{content[:8]}-{number}" for number in numbers]


@pytest.mark.parametrize(
    ("wanted", "there", "started", "removed"),
    [
        (2, [], names(0, 1), []),
        (2, [one(0), one(1)], [], []),
        (2, [one(1)], names(0), []),
        (1, [one(0), one(1)], [], names(1)),
        (0, [one(0), one(0, OLD)], [], [*names(0, content=OLD), *names(0)]),
        # One more than wanted while content changes, and no ready one fewer.
        (2, [one(0, OLD), one(1, OLD)], names(0), []),
        (2, [one(0, OLD), one(1, OLD), one(0, ready=False)], [], []),
        (2, [one(0, OLD), one(1, OLD), one(0)], [], names(1, content=OLD)),
        (2, [one(0, OLD), one(0)], names(1), []),
        (2, [one(0, OLD), one(0), one(1, ready=False)], [], []),
        (2, [one(0, OLD), one(0), one(1)], [], names(0, content=OLD)),
        # Of old ones, those that do not serve go first.
        (2, [one(0, OLD, ready=False), one(1, OLD), one(0)], [], names(0, content=OLD)),
    ],
)
def test_what_is_started_and_removed(
    wanted: int, there: list[ReplicaContainer], started: list[str], removed: list[str]
) -> None:
    changes = changes_of("greeter", wanted, NEW, there)
    assert list(changes.start) == started
    assert [gone.name for gone in changes.remove] == removed


def test_a_container_that_was_made_and_never_begun_begins() -> None:
    changes = changes_of("greeter", 1, NEW, [one(0, state="created")])
    assert [begun.name for begun in changes.begin] == names(0)


def test_a_rollout_is_complete_when_all_are_new_and_ready() -> None:
    deployment = deployment_of(replicas=2)

    def read(*there: ReplicaContainer) -> tuple[int, bool, bool]:
        rollout = rollout_of_containers(deployment, 2, NEW, there, NOW)
        return rollout.revision, rollout.is_complete, rollout.has_failed

    assert read(one(0), one(1)) == (1, True, False)
    assert read(one(0), one(1), one(0, OLD)) == (1, False, False)
    assert read(one(0), one(1, ready=False)) == (1, False, False)
    assert read() == (0, False, False)
    assert read(one(0, ready=False, state="restarting", restarts=3)) == (1, False, True)
    assert read(one(0, ready=False, state="restarting", restarts=2)) == (1, False, False)


def test_a_rollout_that_is_late_has_failed() -> None:
    deployment = deployment_of(revision_of(agent_manifest(progress_deadline_seconds=60)))
    waits = rollout_of_containers(deployment, 1, NEW, [one(0, ready=False)], NOW)
    assert not waits.has_failed
    begun = deployment_of(deployment.current, rollout=Rollout(waits.revision, began_at=NOW))
    assert rollout_of_containers(begun, 1, NEW, [one(0, ready=False)], NOW + timedelta(seconds=61)).has_failed
    assert not rollout_of_containers(begun, 1, NEW, [one(0, ready=False)], NOW + timedelta(seconds=59)).has_failed


def test_the_content_is_that_of_the_replica_and_of_its_secrets() -> None:
    before = content_of(revision_of(agent_manifest()), HOST, [])
    assert content_of(revision_of(agent_manifest(), 2), HOST, []) == before
    assert content_of(revision_of(agent_manifest(tier="tier_2_write_limited")), HOST, []) == before
    assert content_of(revision_of(agent_manifest(), restarted=1), HOST, []) != before
    with_secret = revision_of(agent_manifest(secrets=["keys"]))
    assert content_of(with_secret, HOST, ["A=1"]) != content_of(with_secret, HOST, ["A=2"])


def test_a_replica_has_limits_and_no_rights() -> None:
    manifest = agent_manifest(command=["serve", "-v"], arguments=["all"], secrets=["keys"])
    words = replica_words("greeter-1", NEW, deployment_of(revision_of(manifest)), HOST)
    assert words[-3:] == ["agents/greeter:1", "-v", "all"]
    for word in (
        *("--entrypoint=serve", "--user=10001:10001", "--cap-drop=ALL", "--memory=67108864", "--cpus=0.05"),
        *("--publish=127.0.0.1::3000", "--env=PORT=3000", "--env-file=/secrets/ada-agents/keys.env"),
    ):
        assert word in words


def test_a_replica_is_probed_as_its_own_revision_said() -> None:
    words = replica_words("greeter-1", NEW, deployment_of(revision_of(agent_manifest(health="/old"))), HOST)
    [label] = [word for word in words if word.startswith(f"--label={HEALTH_LABEL}=")]
    made = PresentContainer("1", "greeter-1", {HEALTH_LABEL: label.split("=", 2)[2]})
    health = health_of(made)
    assert health is not None
    assert (health.path, health.readiness_delay) == ("/old", 1)
    for labels in ({}, {HEALTH_LABEL: "no JSON"}, {HEALTH_LABEL: "[1]"}, {HEALTH_LABEL: '{"other": 1}'}):
        assert health_of(PresentContainer("1", "greeter-1", labels)) is None


def test_another_health_check_is_another_content() -> None:
    before = content_of(revision_of(agent_manifest()), HOST, [])
    assert content_of(revision_of(agent_manifest(health="/other")), HOST, []) != before


def test_the_engines_file_of_what_a_replica_prints_has_a_limit() -> None:
    words = replica_words("greeter-1", NEW, deployment_of(), HOST)
    assert {"--log-driver=json-file", "--log-opt=max-size=10m"} <= set(words[: words.index("agents/greeter:1")])


def test_a_replica_has_no_proxy_but_that_of_its_own_variables_and_secrets() -> None:
    manifest = agent_manifest(environment={"HTTP_PROXY": "http://own"}, secrets=["keys"])
    words = replica_words("greeter-1", NEW, deployment_of(revision_of(manifest)), HOST, ["https_proxy=http://secret"])
    assert {"--env=HTTP_PROXY=http://own", "--env=http_proxy=", "--env=HTTPS_PROXY="} <= set(words)
    assert not [word for word in words if word.startswith("--env=https_proxy=")]


def test_what_a_user_writes_arrives_as_it_is() -> None:
    manifest = agent_manifest(environment={"A": "$(HOME) $$(B) $C"}, arguments=["$(A)", "$$"])
    words = replica_words("greeter-1", NEW, deployment_of(revision_of(manifest)), HOST)
    assert "--env=A=$(HOME) $$(B) $C" in words
    assert words[-2:] == ["$(A)", "$$"]


def test_where_an_autoscaler_is_wanted_the_least_runs() -> None:
    scaled = revision_of(agent_manifest(scaling={"min_replicas": 2, "max_replicas": 5}))
    assert number_wanted(deployment_of(scaled, replicas=None)) == 2
    assert number_wanted(deployment_of(replicas=4)) == 4
