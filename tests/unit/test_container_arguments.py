"""The command line of a container, without an engine: which walls it asks for, and what it does not show."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sandbox_calls import CALL, LIMITS
from worker.sandbox.base import Call, Command, SandboxRefused
from worker.sandbox.container.arguments import (
    LEAST_PROCESSES,
    ContainerSettings,
    Mounted,
    container_name,
    run_words,
)
from worker.sandbox.container.engine import Engine, Kind

COMMAND = Command(("echo", "hello"), LIMITS, CALL, b"input", {"TOKEN": "a-secret"})
SETTINGS = ContainerSettings(Engine(("docker",), Kind.DOCKER, ""), "image:1", ("/data", "/tmp"), None, 5000, 60)
ONLY_FOLDER = Mounted(Path("/files"))


def words(
    settings: ContainerSettings = SETTINGS, command: Command = COMMAND, mounted: Mounted = ONLY_FOLDER
) -> list[str]:
    return run_words(settings, command, mounted, "mark")


def values(found: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(found) if name == option]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--network", ["none"]),
        ("--cap-drop", ["ALL"]),
        ("--pull", ["never"]),
        ("--memory", ["1000"]),
        ("--memory-swap", ["1000"]),
        ("--cpus", ["0.5"]),
        ("--cpu-shares", ["102"]),
        ("--volume", ["/files:/workspace:rw,Z"]),
        ("--tmpfs", [f"{place}:rw,exec,nosuid,nodev,mode=1777,size=5000" for place in ("/tmp", "/data")]),
    ],
)
def test_a_wall_is_an_option(option: str, expected: list[str]) -> None:
    assert values(words(), option) == expected


def test_the_root_is_read_only_and_no_privilege_can_be_gained() -> None:
    assert "--read-only" in words()
    assert "no-new-privileges" in values(words(), "--security-opt")


def test_a_container_gets_as_many_processes_as_its_runtime_needs() -> None:
    few = replace(COMMAND, limits=replace(LIMITS, processes=1))
    assert values(words(command=few), "--pids-limit") == [str(LEAST_PROCESSES)]
    assert values(words(), "--pids-limit") == ["34"]


def test_variables_of_the_command_are_not_shown_to_the_machine() -> None:
    assert not any("a-secret" in word for word in words(mounted=replace(ONLY_FOLDER, variables=Path("/variables"))))


def test_only_files_that_there_are_get_mounted() -> None:
    found = values(words(mounted=replace(ONLY_FOLDER, given=Path("/given"), egress=Path("/egress"))), "--volume")
    assert [volume.split(":")[0] for volume in found] == ["/files", "/given", "/egress"]


def test_the_command_comes_last_and_unchanged() -> None:
    assert words()[-2:] == ["echo", "hello"]


ODD = Path("/a:b")


@pytest.mark.parametrize(
    "mounted",
    [
        Mounted(ODD),
        replace(ONLY_FOLDER, given=ODD),
        replace(ONLY_FOLDER, variables=ODD),
        replace(ONLY_FOLDER, egress=ODD),
    ],
)
def test_a_path_with_a_colon_is_refused(mounted: Mounted) -> None:
    with pytest.raises(SandboxRefused, match="colon"):
        words(mounted=mounted)


def test_only_podman_is_asked_to_mask_what_it_alone_can() -> None:
    podman = replace(SETTINGS, engine=Engine(("podman",), Kind.PODMAN, ""))
    assert any(option.startswith("mask=") for option in values(words(podman), "--security-opt"))
    assert not any(option.startswith("mask=") for option in values(words(), "--security-opt"))


@pytest.mark.parametrize(
    "other",
    [
        replace(CALL, user_id="bob"),
        replace(CALL, run_id="other"),
        replace(CALL, step_id="other"),
        replace(CALL, generation=2),
        replace(CALL, tries=2),
    ],
)
def test_no_two_calls_share_a_name(other: Call) -> None:
    assert container_name(other) != container_name(CALL)
    assert container_name(replace(CALL)) == container_name(CALL)
