"""`agentctl deployments` as people and scripts rely on it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentctl.deployments import declared, rollout
from backplane.domain.agent_manifest import parse_manifest
from tests.deployments import IMAGE, MANIFEST
from tests.scripted_api import answer, problem, raw, stream
from tests.unit.conftest import Agentctl, Script

EXAMPLE = Path(__file__).parents[2] / "examples" / "deployment.yaml"
AT = "2026-11-30T12:00:00+00:00"
ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
DEPLOYMENT: dict[str, Any] = {
    "id": ID,
    "user_id": "u",
    "namespace": "team-a",
    "agent_id": "support",
    "status": "running",
    "reason": "",
    "replicas": 2,
    "ready_replicas": 2,
    "autoscaled": None,
    "revision": 3,
    "running_revision": 3,
    "approval": "not_needed",
    "image": IMAGE,
    "access_tier": "tier_1_read",
    "auto_rollback": False,
    "paused": False,
    "drift": [],
    "url": "http://support-3d5e0f9a2b6c.team-a.svc:80",
    "created_at": "2026-11-30T12:00:00+00:00",
    "updated_at": "2026-11-30T12:00:00+00:00",
    "deleted_at": None,
    "manifest": MANIFEST,
}
NONE = answer(200, {"deployments": [], "next_cursor": None})
FOUND = answer(200, {"deployments": [DEPLOYMENT], "next_cursor": None})


def events(*numbers: int) -> bytes:
    found = [
        {
            "number": number,
            "type": "revision",
            "message": f"message {number}",
            "revision": 3,
            "at": "2026-11-30T12:00:00Z",
        }
        for number in reversed(numbers)
    ]
    return answer(200, {"events": found, "next_cursor": None})


def deployment(**changes: Any) -> bytes:
    return answer(200, {**DEPLOYMENT, **changes})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "LOOK_SECONDS", 0.0)


def test_the_example_is_a_deployment() -> None:
    example = yaml.safe_load(EXAMPLE.read_text())
    assert set(example) == {"agent_id", "namespace", "image", "manifest"}
    assert parse_manifest(example["manifest"]).auto_rollback


def test_a_file_is_deployed_where_nothing_is_there(script: Script, agentctl: Agentctl) -> None:
    api = script(NONE, answer(201, DEPLOYMENT))
    code, printed, _ = agentctl("deployments", "apply", str(EXAMPLE))
    assert (code, printed) == (0, f"support in team-a: made, revision 3, {ID}\n")
    assert "agent_id=support&namespace=team-a" in api.requests[0].path
    assert json.loads(api.requests[1].body) == yaml.safe_load(EXAMPLE.read_text())


@pytest.mark.parametrize(("revision", "what"), [(3, "unchanged"), (4, "changed")])
def test_a_file_changes_what_is_there(script: Script, agentctl: Agentctl, revision: int, what: str) -> None:
    api = script(FOUND, deployment(revision=revision))
    _, printed, _ = agentctl("deployments", "apply", str(EXAMPLE), "--image", "image:9")
    assert f"{what}, revision {revision}" in printed
    assert (api.requests[1].method, api.requests[1].path) == ("PATCH", f"/api/deployments/{ID}")
    sent = json.loads(api.requests[1].body)
    assert (set(sent), sent["image"]) == ({"image", "manifest"}, "image:9")


def test_a_manifest_alone_is_deployed_with_what_the_options_say(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(MANIFEST))
    api = script(NONE, answer(201, DEPLOYMENT))
    assert agentctl("deployments", "apply", str(file), "--image", IMAGE, "-n", "team-a")[0] == 0
    expected = {"agent_id": "support", "namespace": "team-a", "image": IMAGE, "manifest": MANIFEST}
    assert json.loads(api.requests[1].body) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "agent_id, namespace, image and manifest"),
        ("{}", "agent_id, namespace, image and manifest"),
        (json.dumps({"manifest": MANIFEST, "agent_id": "a", "image": "b"}), "--namespace"),
        (json.dumps(MANIFEST), "namespace is missing"),
        (json.dumps({"manifest": MANIFEST, "namesapce": "a"}), "no such field: namesapce; there are agent_id"),
        (json.dumps({"apiVersion": "apps/v1", "kind": "Deployment"}), "its kind is 'Deployment'"),
        (json.dumps({"apiVersion": "ossa/v0.4.6"}), "it has no kind"),
        ("a: 1\na: 2", "a"),
    ],
)
def test_a_file_that_is_none_is_refused_before_any_call(
    script: Script, agentctl: Agentctl, tmp_path: Path, content: str, says: str
) -> None:
    file, api = tmp_path / "deployment.yaml", script()
    file.write_text(content)
    code, _, error = agentctl("deployments", "apply", str(file))
    assert (code, says in error, api.requests) == (2, True, [])


def test_a_field_that_does_not_exist_is_refused_also_where_options_say_all_else(
    script: Script, agentctl: Agentctl, tmp_path: Path
) -> None:
    file, api = tmp_path / "deployment.yaml", script()
    file.write_text(json.dumps({**yaml.safe_load(EXAMPLE.read_text()), "replicas": 3}))
    code, _, error = agentctl("deployments", "apply", str(file), "-n", "team-b")
    assert (code, "no such field: replicas" in error, api.requests) == (2, True, [])


def test_a_deployment_is_read_from_standard_input(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = script(NONE, answer(201, DEPLOYMENT))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(EXAMPLE.read_bytes())))
    assert agentctl("deployments", "apply", "-")[0] == 0
    assert json.loads(api.requests[1].body) == yaml.safe_load(EXAMPLE.read_text())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "standard input: it must be an object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"#" * (declared.FILE_MAX_BYTES + 1), "more than 1,048,576 bytes"),
    ],
)
def test_standard_input_that_is_none_is_refused_before_any_call(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, given: bytes, says: str
) -> None:
    api = script()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    code, _, error = agentctl("deployments", "apply", "-")
    assert (code, says in error, api.requests) == (2, True, [])


def test_standard_input_may_be_as_long_as_is_read(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(NONE, answer(201, DEPLOYMENT))
    example = EXAMPLE.read_bytes()
    given = example + b"#" * (declared.FILE_MAX_BYTES - len(example))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert agentctl("deployments", "apply", "-")[0] == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("team-a/nope", "There is no deployment 'nope' in the namespace 'team-a' that you may see;"),
        ("nope", "There is no deployment called 'nope' that you may see;"),
        ("01936f", "No deployment of yours begins with '01936f';"),
    ],
)
def test_a_deployment_that_is_not_there_is_named_as_it_was_given(
    script: Script, agentctl: Agentctl, given: str, says: str
) -> None:
    script(NONE, NONE)
    code, _, error = agentctl("deployments", "show", given)
    assert (code, says in error, "agentctl deployments list" in error) == (4, True, True), error


def test_advice_of_the_api_names_the_command_and_no_call(script: Script, agentctl: Agentctl) -> None:
    words = f"no revision 9 of deployment {ID} is kept; GET /api/deployments/{ID}/revisions lists those there are"
    script(FOUND, problem(404, "not_found", words))
    _, _, error = agentctl("deployments", "rollback", "support", "--revision", "9")
    assert f"`agentctl deployments revisions {ID}` lists those there are" in error
    assert "/api/" not in error


def test_an_engines_words_are_shown_once(script: Script, agentctl: Agentctl) -> None:
    words = "`podman run` failed: no such image"
    failed = {"number": 2, "type": "failed", "message": f"revision 3: {words}", "revision": 3, "at": AT}
    script(
        FOUND,
        events(1),
        deployment(),
        deployment(status="failed", reason=f"revision 3 does not roll out, 0 of 2 replicas are ready: {words}"),
        answer(200, {"events": [failed], "next_cursor": None}),
    )
    code, printed, _ = agentctl("deployments", "apply", str(EXAMPLE), "--wait")
    assert (code, printed.count(words)) == (1, 1)
    assert "does not roll out, 0 of 2 replicas are ready\n" in printed


def test_all_faults_of_a_manifest_are_shown(script: Script, agentctl: Agentctl) -> None:
    body = json.loads(problem(422, "invalid_input", "manifest.spec.role: x").partition(b"\r\n\r\n")[2])
    faults = [{"field": f"manifest.{name}", "detail": f"manifest.{name}: it is missing"} for name in ("kind", "spec")]
    script(NONE, answer(422, {**body, "errors": faults}))
    code, _, error = agentctl("deployments", "apply", str(EXAMPLE))
    assert code == 4
    assert all(f"manifest.{name}" in error for name in ("kind", "spec"))


def test_a_rollout_is_followed_to_its_end(script: Script, agentctl: Agentctl) -> None:
    on_its_way = deployment(status="deploying", ready_replicas=0, reason="0 of 2 replicas are ready")
    script(NONE, answer(201, DEPLOYMENT), on_its_way, events(1), deployment(), events(1, 2))
    code, printed, _ = agentctl("deployments", "apply", str(EXAMPLE), "--wait")
    assert code == 0
    assert [line.split("  ")[-1] for line in printed.splitlines()[1:]] == ["message 1", "message 2", "2 of 2 ready"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"status": "failed", "reason": "ImagePullBackOff"}, 1),
        ({"status": "deploying", "approval": "pending", "reason": "waits"}, 6),
        ({"status": "deploying", "paused": True}, 6),
        ({"status": "stopped", "replicas": 0}, 0),
    ],
)
def test_the_end_of_a_rollout_is_the_exit_code(
    script: Script, agentctl: Agentctl, changes: dict[str, Any], code: int
) -> None:
    script(events(5), deployment(), deployment(**changes), events(5))
    ended, printed, _ = agentctl("deployments", "scale", ID, "2", "--wait")
    assert (ended, changes.get("reason", "") in printed, "message 5" in printed) == (code, True, False)


def test_a_rollout_that_ended_with_another_revision_is_no_success(script: Script, agentctl: Agentctl) -> None:
    script(events(5), deployment(), deployment(revision=4), events(5, 6))
    code, printed, said = agentctl("deployments", "restart", ID, "--wait")
    assert (code, "message 6" in printed, "Revision 3 was followed by revision 4" in said) == (1, True, True)


def test_a_rollout_that_takes_too_long_is_left_alone(script: Script, agentctl: Agentctl) -> None:
    waits = deployment(status="deploying")
    script(events(), deployment(), *[waits, events()] * 10_000)
    code, _, said = agentctl("deployments", "restart", ID, "--wait", "--timeout", "1")
    assert (code, "goes on without being watched" in said) == (6, True)


def test_deployments_are_listed(script: Script, agentctl: Agentctl) -> None:
    api = script(FOUND)
    _, printed, _ = agentctl("deployments", "list", "--status", "running", "-n", "team-a", "--pending")
    assert printed.splitlines()[1].split()[:5] == ["team-a/support", "running", "2/2", "3", IMAGE]
    assert "limit=50&namespace=team-a&status=running&approval=pending" in api.requests[0].path


def test_a_deployment_is_shown(script: Script, agentctl: Agentctl) -> None:
    pending = {"approval": "pending", "running_revision": 2, "autoscaled": {"min": 1, "max": 5}}
    script(FOUND, deployment(**pending))
    _, printed, _ = agentctl("deployments", "show", "team-a/support")
    shown = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert shown["revision"] == "3, and 2 runs"
    assert shown["replicas"] == "2 of 2 ready, between 1 and 5 by an autoscaler"
    assert shown["approval"] == "pending"


def test_a_name_that_several_have_is_refused_with_their_ids(script: Script, agentctl: Agentctl) -> None:
    other = {**DEPLOYMENT, "id": ID.replace("01936f7e", "01936f7f"), "namespace": "team-b"}
    script(answer(200, {"deployments": [DEPLOYMENT, other], "next_cursor": None}))
    code, _, error = agentctl("deployments", "show", "support")
    assert (code, ID in error, "support in team-b" in error) == (2, True, True)


def test_a_deployment_is_found_by_the_beginning_of_its_id(script: Script, agentctl: Agentctl) -> None:
    api = script(FOUND, deployment())
    assert agentctl("deployments", "show", "01936f7e")[0] == 0
    assert api.requests[1].path == f"/api/deployments/{ID}"


def test_a_name_that_nothing_has_is_refused(script: Script, agentctl: Agentctl) -> None:
    script(NONE, NONE)
    code, _, error = agentctl("deployments", "show", "abc")
    assert (code, "agentctl deployments list" in error) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (("scale", ID, "5"), "scale", {"replicas": 5}),
        (("rollback", ID), "rollback", {}),
        (("rollback", ID, "--revision", "2"), "rollback", {"revision": 2}),
        (("restart", ID), "restart", None),
        (("pause", ID), "pause", None),
        (("resume", ID), "resume", None),
        (("approve", ID, "--revision", "2"), "decision", {"decision": "approve", "revision": 2}),
        (
            ("reject", ID, "--revision", "2", "--reason", "no"),
            "decision",
            {"decision": "reject", "reason": "no", "revision": 2},
        ),
    ],
)
def test_an_action_is_asked_for(
    script: Script, agentctl: Agentctl, arguments: tuple[str, ...], path: str, body: dict[str, Any] | None
) -> None:
    api = script(deployment())
    code, printed, _ = agentctl("deployments", *arguments)
    assert (code, "revision 3" in printed) == (0, True)
    assert (api.requests[0].method, api.requests[0].path) == ("POST", f"/api/deployments/{ID}/{path}")
    assert (json.loads(api.requests[0].body) if api.requests[0].body else None) == body


def test_an_approval_without_the_revision_that_was_looked_at_is_refused(script: Script, agentctl: Agentctl) -> None:
    api = script()
    code, _, error = agentctl("deployments", "approve", ID)
    assert (code, "--revision" in error) == (2, True)
    assert api.requests == []


def test_a_number_of_replicas_that_cannot_be_is_refused_before_any_call(script: Script, agentctl: Agentctl) -> None:
    api = script()
    for replicas in ("-1", "1000000000", "two"):
        assert agentctl("deployments", "scale", ID, "--", replicas)[0] == 2
    assert api.requests == []


def test_a_deployment_is_deleted_and_its_end_is_waited_for(script: Script, agentctl: Agentctl) -> None:
    gone = problem(404, "not_found", "there is no deployment")
    api = script(answer(202, DEPLOYMENT), deployment(), gone)
    code, printed, _ = agentctl("deployments", "delete", ID, "--yes", "--wait", "--grace", "5")
    assert (code, printed) == (0, f"{ID} is gone.\n")
    assert api.requests[0].path == f"/api/deployments/{ID}?grace_seconds=5"


def test_what_may_be_left_of_one_that_is_forgotten_is_shown(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"id": ID, "left": "objects with a label"}))
    code, printed, _ = agentctl("deployments", "delete", ID, "--yes", "--force")
    assert (code, "objects with a label" in printed) == (0, True)
    assert "force=true" in api.requests[0].path


def line(number: int, text: str, left_out: int = 0) -> dict[str, Any]:
    data = {"replica": "support-1", "line": text, "left_out": left_out}
    return {"id": number, "type": "log", "at": "2026-11-30T12:00:00Z", "data": data}


def test_lines_are_shown_with_who_printed_them_and_what_is_missing(script: Script, agentctl: Agentctl) -> None:
    gap = {"id": 4, "type": "gap", "at": "", "data": {"after": 0, "before": 5, "reason": "not kept"}}
    api = script(stream(gap, line(5, "one \x1b[31mred"), line(6, "two", 3)))
    code, printed, said = agentctl("deployments", "logs", ID, "--tail", "2")
    assert (code, api.requests[0].path) == (0, f"/api/deployments/{ID}/logs?tail=2&follow=false")
    assert [text.partition("  ")[0] for text in printed.splitlines()] == ["support-1", "support-1"]
    assert "\x1b" not in printed
    assert ("lines 1 to 4: not kept" in said, "3 lines before" in said) == (True, True)


def test_lines_are_followed_over_a_lost_connection_until_the_deployment_is_gone(
    script: Script, agentctl: Agentctl
) -> None:
    end = {"id": 8, "type": "end", "at": "", "data": {"reason": "the deployment is gone"}}
    api = script(stream(line(6, "two"), whole=False), stream(line(7, "three"), end))
    code, printed, said = agentctl("deployments", "logs", "-f", ID)
    assert (code, len(printed.splitlines()), "is gone" in said) == (0, 2, True)
    assert api.requests[1].headers["Last-Event-ID"] == "6"


def test_history_drift_and_reasons_are_shown(script: Script, agentctl: Agentctl) -> None:
    revision = {
        "number": 3,
        "created_at": "2026-11-30T12:00:00Z",
        "outcome": "failed",
        "approval": "approved",
        "image": IMAGE,
        "cause": "another image",
        "outcome_reason": "ImagePullBackOff",
    }
    script(
        answer(200, {"revisions": [revision], "next_cursor": None}),
        events(1),
        answer(200, {"drift": ["spec.replicas: wanted 2, found 5"], "looked_at": "2026-11-30T12:00:00Z"}),
        answer(200, {"drift": [], "looked_at": None}),
        answer(200, {"text": "2 of 2 replicas are ready."}),
    )
    assert "ImagePullBackOff" in agentctl("deployments", "revisions", ID)[1]
    assert "message 1" in agentctl("deployments", "events", ID)[1]
    assert agentctl("deployments", "diff", ID)[1] == "spec.replicas: wanted 2, found 5\n"
    assert "No controller" in agentctl("deployments", "diff", ID)[1]
    assert agentctl("deployments", "explain", ID)[1] == "2 of 2 replicas are ready.\n"


def test_with_json_there_is_nothing_but_json(script: Script, agentctl: Agentctl) -> None:
    script(NONE, answer(201, DEPLOYMENT), deployment(), events(1))
    _, printed, _ = agentctl("deployments", "apply", str(EXAMPLE), "--wait", "--json")
    assert json.loads(printed) == DEPLOYMENT


def test_an_api_that_is_none_is_no_fault_of_the_command(script: Script, agentctl: Agentctl) -> None:
    script(*[raw(200, b"[]")] * 4)
    assert agentctl("deployments", "show", ID)[0] == 5
