"""The Job of a sandbox: the same for the same call, within what Kubernetes allows, and with nothing to steal in it."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.domain.sandbox_labels import label_value
from worker.sandbox.base import Call, Limits
from worker.sandbox.kubernetes import manifest as job
from worker.sandbox.kubernetes.manifest import JobSettings

MIB = 1024 * 1024
CALL = Call("ann@example.org", "0b6a2a3e-7c1f-4a57-9a57-3d6f2a1b4c5d", "2", generation=3, tries=1)
LIMITS = Limits(
    wall_seconds=30,
    memory_bytes=256 * MIB,
    cpus=0.25,
    cpu_seconds=20,
    processes=32,
    file_bytes=64 * MIB,
    disk_bytes=32 * MIB,
    files=1000,
)
SETTINGS = JobSettings(
    namespace="tools", image="python:3", argv=("python3", "-c", "…"), worker_id="w", ttl_seconds=300, tmp_bytes=16 * MIB
)
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def made(limits: Limits = LIMITS, settings: JobSettings = SETTINGS, deadline_seconds: float = 90.5) -> dict[str, Any]:
    return job.manifest(job.step_name(CALL), job.step_labels(CALL, "w"), limits, settings, deadline_seconds)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return pod


def test_equal_calls_have_one_name() -> None:
    assert job.step_name(CALL) == job.step_name(replace(CALL))


@pytest.mark.parametrize("changed", [{"run_id": "x"}, {"step_id": "21"}, {"generation": 31}, {"tries": 2}])
def test_each_part_of_a_call_changes_its_name(changed: dict[str, Any]) -> None:
    assert job.step_name(replace(CALL, **changed)) != job.step_name(CALL)


def test_parts_that_read_alike_when_joined_give_different_names() -> None:
    assert job.step_name(replace(CALL, step_id="a", run_id="bc")) != job.step_name(
        replace(CALL, step_id="ca", run_id="b")
    )


@settings(max_examples=30)
@given(text=st.text(max_size=200), number=st.integers(0, 10**9))
def test_whatever_the_ids_are_names_and_labels_are_ones_that_kubernetes_takes(text: str, number: int) -> None:
    call = Call(text, text, text, number, number)
    assert all(NAME.fullmatch(name) for name in (job.step_name(call), job.run_name(call, number), job.warm_name(text)))
    for value in (job.step_labels(call, text) | job.run_labels(call, text) | job.warm_labels(text)).values():
        assert VALUE.fullmatch(value)
        assert value


def test_an_id_that_may_be_a_label_is_one_as_it_is() -> None:
    assert label_value(CALL.run_id) == CALL.run_id


def test_ids_that_may_not_be_labels_stay_apart() -> None:
    assert label_value("a@b") != label_value("a.b") != label_value("a@c")
    assert label_value("a" * 64) != label_value("a" * 65)


def test_a_job_runs_once_and_is_stopped_and_removed_in_time() -> None:
    spec = made()["spec"]
    assert spec["backoffLimit"] == 0
    assert pod_of(made())["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 91
    assert spec["ttlSecondsAfterFinished"] == 300


def test_what_is_asked_for_is_what_is_allowed() -> None:
    resources = pod_of(made())["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"] == "250m"
    assert resources["limits"]["memory"] == str(256 * MIB)


def test_disk_has_room_for_the_workspace_and_the_temporary_files_and_an_end() -> None:
    pod = pod_of(made())
    sizes = {volume["name"]: int(volume["emptyDir"]["sizeLimit"]) for volume in pod["volumes"]}
    assert sizes["workspace"] >= LIMITS.disk_bytes
    assert sizes["tmp"] == 16 * MIB
    assert int(pod["containers"][0]["resources"]["limits"]["ephemeral-storage"]) > sizes["workspace"] + sizes["tmp"]


def test_a_pod_is_what_the_restricted_security_level_asks_for() -> None:
    pod = pod_of(made())
    of_pod, of_container = pod["securityContext"], pod["containers"][0]["securityContext"]
    assert of_pod["runAsNonRoot"]
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_a_pod_has_no_token_no_services_and_no_variable_of_the_platform() -> None:
    pod = pod_of(made())
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["dnsPolicy"] == "None"
    assert {variable["name"] for variable in pod["containers"][0]["env"]} == {"HOME", "LANG"}


def test_a_pod_goes_where_the_settings_say() -> None:
    settings = replace(
        SETTINGS,
        runtime_class="gvisor",
        node_selector={"pool": "tools"},
        tolerations=[{"key": "tools", "operator": "Exists"}],
        pull_secrets=["registry"],
    )
    pod = pod_of(made(settings=settings))
    assert pod["runtimeClassName"] == "gvisor"
    assert pod["nodeSelector"] == {"pool": "tools"}
    assert pod["tolerations"] == [{"key": "tools", "operator": "Exists"}]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert not {"runtimeClassName", "nodeSelector", "tolerations", "imagePullSecrets"} & pod_of(made()).keys()


def test_job_and_pod_are_found_by_the_same_labels() -> None:
    manifest = made()
    assert manifest["metadata"]["labels"] == manifest["spec"]["template"]["metadata"]["labels"]
    assert job.worker_labels("w").items() <= manifest["metadata"]["labels"].items()
