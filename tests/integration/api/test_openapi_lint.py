"""What generators of clients need of the description: stable names, errors, types, and words that are the code's."""

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import app
import backplane
from app.schemas.agents import SenderKind
from app.schemas.events import ModelCallStatus, StepEventStatus
from app.schemas.outcomes import OriginKind, PriorityName, ReasonCode, RiskName, WebhookEvent
from app.schemas.problems import Problem, ProblemCode
from backplane.domain.agents import AgentStatus
from backplane.domain.dead_letters import DeadReason
from backplane.domain.decisions import DecisionKind, DecisionStatus
from backplane.domain.event_data import DATA
from backplane.domain.events import EventType
from backplane.domain.model_calls import CallStatus
from backplane.domain.runs import FINAL, Priority, RunStatus
from backplane.domain.services import Report
from backplane.domain.steps import StepStatus
from backplane.domain.users import Tier
from backplane.domain.webhooks import DeliveryStatus
from backplane.errors import PlatformError
from checks.error_codes import OF_THE_API
from worker.tools.base import Risk

ROOT = Path(__file__).parents[3]

OPERATIONS = {
    "post /agent/bulk": "start_bulk_action",
    "get /agent/bulk": "list_bulk_actions",
    "get /agent/bulk/{bulk_id}": "show_bulk_action",
    "get /agent/bulk/{bulk_id}/runs": "list_runs_of_bulk_action",
    "delete /agent/bulk/{bulk_id}": "stop_bulk_action",
    "post /agent/runs/{run_id}/export": "export_run",
    "get /agent/exports": "list_exports",
    "get /agent/exports/{export_id}": "show_export",
    "delete /agent/exports/{export_id}": "remove_export",
    "get /agent/exports/{export_id}/archive": "get_export_archive",
    "delete /agent/accounts/{account_id}": "close_account",
    "delete /agent/dead-letters": "purge_dead_letters",
    "delete /agent/dead-letters/{run_id}": "purge_dead_letter",
    "delete /agent/runs/{run_id}": "delete_run",
    "delete /agent/runs/{run_id}/files/{path}": "delete_file",
    "delete /agent/secrets/{name}": "delete_secret",
    "get /agent/accounts": "list_accounts",
    "get /agent/accounts/{account_id}": "show_account",
    "get /agent/artifacts/{agent}": "list_artifacts",
    "get /agent/artifacts/{agent}/content": "get_artifact",
    "get /agent/artifacts/{user}/{agent}/files": "list_artifacts_at",
    "get /agent/artifacts/{user}/{agent}/log": "list_artifact_changes",
    "get /agent/artifacts/{user}/{agent}/show": "show_artifact",
    "get /agent/budget": "show_budget",
    "get /agent/dead-letters": "list_dead_letters",
    "get /agent/dead-letters/{run_id}": "show_dead_letter",
    "get /agent/decisions": "list_decisions",
    "get /agent/events": "stream_all_events",
    "get /agent/ledger/audit": "audit_ledger",
    "get /agent/logs/{run_id}": "list_events",
    "get /agent/logs/{run_id}/stream": "stream_events",
    "get /agent/me": "show_me",
    "get /agent/queue": "show_queue",
    "get /agent/queue/finished": "list_finished_runs",
    "get /agent/runs": "list_runs",
    "get /agent/audit": "list_audit_entries",
    "get /agent/logs/{run_id}/search": "search_log",
    "get /agent/overview": "show_overview",
    "get /agent/preferences": "show_preferences",
    "put /agent/preferences": "put_preferences",
    "get /agent/runs/count": "count_runs",
    "delete /console/session": "sign_out",
    "get /console/session": "show_session",
    "post /console/session": "sign_in",
    "get /agent/runs/{run_id}": "show_run",
    "get /agent/runs/{run_id}/decisions": "list_decisions_of_run",
    "get /agent/runs/{run_id}/explain": "explain_run",
    "get /agent/runs/{run_id}/files": "list_files",
    "get /agent/runs/{run_id}/files/{path}": "get_file",
    "get /agent/runs/{run_id}/model-calls": "list_model_calls",
    "get /agent/runs/{run_id}/model-calls/{call_id}": "show_model_call",
    "get /agent/runs/{run_id}/plans": "list_plans",
    "get /agent/secrets": "list_secrets",
    "get /agent/handlers": "list_handlers",
    "get /agent/handlers/{name}": "show_handler",
    "get /agent/queues": "list_queues",
    "get /agent/tools": "list_tools",
    "get /agent/tools/{name}": "show_tool",
    "get /agent/usage": "show_usage",
    "get /agent/webhook-secret": "show_webhook_secret",
    "get /health/live": "check_liveness",
    "get /health/ready": "check_readiness",
    "post /agent/accounts/transfer": "transfer_between_accounts",
    "post /agent/accounts/{account_id}/top-up": "top_up_account",
    "post /agent/accounts/{account_id}/withdraw": "withdraw_from_account",
    "post /agent/artifacts/{user}/{agent}/rollback": "roll_back_artifacts",
    "post /agent/dead-letters/redrive": "redrive_dead_letters",
    "post /agent/dead-letters/{run_id}/redrive": "redrive_dead_letter",
    "post /agent/execute": "execute",
    "post /agent/runs/{run_id}/decisions/{decision_id}": "decide",
    "post /agent/webhook-secret/rotate": "rotate_webhook_secret",
    "put /agent/runs/{run_id}/files/{path}": "put_file",
    "put /agent/secrets/{name}": "put_secret",
    "post /api/v1/events": "publish_events",
    "get /api/v1/events": "list_published_events",
    "get /api/v1/events/stream": "stream_published_events",
    "get /api/nas/services": "list_services",
    "post /api/nas/services": "create_service",
    "get /api/nas/services/status": "service_status",
    "get /api/nas/services/{service}": "show_service",
    "put /api/nas/services/{service}": "put_service",
    "delete /api/nas/services/{service}": "delete_service",
    "get /api/nas/services/{service}/history": "service_history",
    "get /api/deployments": "list_deployments",
    "post /api/deployments": "create_deployment",
    "get /api/deployments/{deployment_id}": "show_deployment",
    "patch /api/deployments/{deployment_id}": "change_deployment",
    "delete /api/deployments/{deployment_id}": "delete_deployment",
    "post /api/deployments/{deployment_id}/scale": "scale_deployment",
    "post /api/deployments/{deployment_id}/rollback": "roll_back_deployment",
    "post /api/deployments/{deployment_id}/restart": "restart_deployment",
    "post /api/deployments/{deployment_id}/pause": "pause_deployment",
    "post /api/deployments/{deployment_id}/resume": "resume_deployment",
    "post /api/deployments/{deployment_id}/decision": "decide_on_deployment",
    "get /api/deployments/{deployment_id}/revisions": "list_revisions",
    "get /api/deployments/{deployment_id}/events": "list_deployment_events",
    "get /api/deployments/{deployment_id}/explain": "explain_deployment",
    "get /api/deployments/{deployment_id}/drift": "show_drift",
    "get /api/deployments/{deployment_id}/logs": "stream_deployment_logs",
    "get /api/vastai/instances": "list_gpu_machines",
    "post /api/vastai/instances": "start_gpu_machine",
    "get /api/vastai/explain": "explain_gpu_machines",
    "get /api/vastai/instances/{machine}": "show_gpu_machine",
    "get /api/vastai/instances/{machine}/explain": "explain_gpu_machine",
    "delete /api/vastai/instances/{machine}": "stop_gpu_machine",
    "get /api/v1/agents/pools": "list_agent_pools",
    "post /api/v1/agents/pools": "create_agent_pool",
    "patch /api/v1/agents/pools/{pool}": "change_agent_pool",
    "delete /api/v1/agents/pools/{pool}": "delete_agent_pool",
    "post /api/v1/agents/pools/{pool}/agents": "spawn_agent",
    "get /api/v1/agents": "list_agents",
    "get /api/v1/agents/{agent_id}": "show_agent",
    "patch /api/v1/agents/{agent_id}": "change_agent",
    "delete /api/v1/agents/{agent_id}": "delete_agent",
    "post /api/v1/agents/{agent_id}/messages": "send_message",
    "get /api/v1/agents/{agent_id}/messages": "list_messages",
    "get /api/v1/agents/{agent_id}/stream": "stream_agent",
    "get /api/v1/agents/{agent_id}/explain": "explain_agent",
    "post /api/v1/agents/{agent_id}/pause": "pause_agent",
    "post /api/v1/agents/{agent_id}/resume": "resume_agent",
    "post /api/v1/agents/{agent_id}/terminate": "terminate_agent",
    "get /api/v1/agents/{agent_id}/state": "show_agent_state",
    "put /api/v1/agents/{agent_id}/state": "put_agent_state",
    "get /api/v1/schedules": "list_schedules",
    "get /api/v1/schedules/{name}": "show_schedule",
    "put /api/v1/schedules/{name}": "put_schedule",
    "delete /api/v1/schedules/{name}": "delete_schedule",
    "post /api/v1/schedules/{name}/pause": "pause_schedule",
    "post /api/v1/schedules/{name}/resume": "resume_schedule",
    "post /api/v1/schedules/{name}/fire": "fire_schedule",
    "get /api/v1/hooks": "list_hooks",
    "put /api/v1/hooks/{name}": "put_hook",
    "get /api/v1/hooks/{name}": "show_hook",
    "delete /api/v1/hooks/{name}": "delete_hook",
    "post /api/v1/hooks/{name}": "receive_hook",
}
"""Clients call their functions so: a name that is given to another operation, or taken away, breaks them."""

SAME_IN_CODE = {
    "CallStatus": CallStatus,
    "DeadReason": DeadReason,
    "DecisionKind": DecisionKind,
    "DecisionStatus": DecisionStatus,
    "DeliveryStatus": DeliveryStatus,
    "ModelCallStatus": ModelCallStatus,
    "OriginKind": OriginKind,
    "PriorityName": PriorityName,
    "ProblemCode": ProblemCode,
    "AgentStatus": AgentStatus,
    "ReasonCode": ReasonCode,
    "SenderKind": SenderKind,
    "RiskName": RiskName,
    "RunStatus": RunStatus,
    "StepEventStatus": StepEventStatus,
    "StepStatus": StepStatus,
    "Tier": Tier,
    "WebhookEvent": WebhookEvent,
}

OF_OTHERS = {
    "AgentChange.metadata": "the caller's own",
    "AgentStateView.state": "the agent's own",
    "AgentView.metadata": "the caller's own",
    "AuditEntryView.details": "each action has its own",
    "BulkView.filter": "what was asked for, with only what was given",
    "Approve.arguments": "each tool has its own",
    "Asked.arguments": "each tool has its own",
    "Asked.earlier_arguments": "each tool has its own",
    "Asked.schema": "a JSON schema",
    "CloudEventView": "its extensions are the publisher's own",
    "CreateAndStartRun.metadata": "the caller's own",
    "CreateRun.metadata": "the caller's own",
    "ListedRunView.metadata": "the caller's own",
    "ManifestForm.extensions": "the caller's own",
    "SpecForm.extensions": "the caller's own",
    "GivenAnswer.arguments": "each tool has its own",
    "ModelCallDetails.request": "each kind of model server has its own",
    "ModelCallDetails.response": "each kind of model server has its own",
    "NewAgent.metadata": "the caller's own",
    "NewAgent.state": "the agent's own",
    "AgentStateChange.state": "the agent's own",
    "RunSummary.metadata": "the caller's own",
    "RunView.metadata": "the caller's own",
    "Step.arguments": "each tool has its own",
    "HandlerView.input": "a JSON schema",
    "HandlerView.result": "a JSON schema",
    "ToolView.parameters": "a JSON schema",
    "ValidateRun": "takes wrong fields, to name them all",
    "WebhookMessage.metadata": "the caller's own",
}
"""Objects that may hold anything, and why."""


def operations(described: Any) -> dict[str, Any]:
    return {
        f"{method} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def objects_in(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(value, dict):
        yield place, value
        for key, inner in value.items():
            yield from objects_in(inner, (*place, key))
    elif isinstance(value, list):
        for inner in value:
            yield from objects_in(inner, place)


# --- names ---


def test_the_ids_of_operations_are_those_that_clients_know(described: Any) -> None:
    assert {name: operation["operationId"] for name, operation in operations(described).items()} == OPERATIONS


def test_no_two_operations_have_the_same_id_or_the_same_summary(described: Any) -> None:
    sent = [methods["post"] for methods in described["webhooks"].values()]
    every = [*operations(described).values(), *sent]
    for key in ("operationId", "summary"):
        assert len({operation[key] for operation in every}) == len(every)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", operation["operationId"]) for operation in every)


def test_a_summary_is_one_short_line_in_words(described: Any) -> None:
    for name, operation in operations(described).items():
        summary = operation["summary"]
        assert 8 <= len(summary) <= 80, name
        assert re.fullmatch(r"[A-Z][^\n]*[^\n.]", summary), name
        assert operation["description"].replace("\n", " ").startswith(summary.partition(" ")[0]), name


def test_every_operation_has_a_tag_that_is_described(described: Any) -> None:
    known = {tag["name"] for tag in described["tags"] if tag["description"]}
    used = {tag for operation in operations(described).values() for tag in operation["tags"]}
    assert all(len(operation["tags"]) == 1 for operation in operations(described).values())
    assert used == known


def test_a_schema_has_a_name_that_can_be_a_name_of_a_class(described: Any) -> None:
    for name in described["components"]["schemas"]:
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", name), name


def test_no_schema_has_the_name_that_generators_give_to_a_property_of_another_one(described: Any) -> None:
    schemas = described["components"]["schemas"]
    made = {
        name + "".join(word.capitalize() for word in of.split("_"))
        for name, schema in schemas.items()
        for of, value in schema.get("properties", {}).items()
        if value.get("type") == "object"
    }
    assert made & schemas.keys() == set()


# --- references and types ---


def test_every_reference_leads_somewhere_and_every_schema_is_referred_to(described: Any) -> None:
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))
    assert referred == set(described["components"]["schemas"])
    assert '"#/$defs/' not in json.dumps(described)


def test_an_object_that_may_hold_anything_has_a_reason(described: Any) -> None:
    found = set()
    for place, schema in objects_in(described["components"]["schemas"]):
        if schema.get("additionalProperties") is True or (
            schema.get("type") == "object" and not {"properties", "additionalProperties"} & schema.keys()
        ):
            found.add(".".join(part for part in place if part not in ("properties", "anyOf")))
    assert found == OF_OTHERS.keys()


def test_every_answer_in_json_has_a_type(described: Any) -> None:
    for name, operation in operations(described).items():
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type == "text/event-stream":
                    continue
                assert content["schema"].keys() & {"$ref", "type", "anyOf", "oneOf"}, f"{name} {status}"


def test_a_body_has_one_content_type_that_generators_know(described: Any) -> None:
    known = {"application/json", "application/octet-stream", "multipart/form-data"}
    for name, operation in operations(described).items():
        content = operation.get("requestBody", {}).get("content", {})
        assert len(content) <= 1, name
        assert content.keys() <= known, name


def test_a_stream_describes_a_frame_and_not_itself(described: Any) -> None:
    streams = [
        name
        for name, operation in operations(described).items()
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    ]
    of_agents = "get /api/v1/agents/{agent_id}/stream"
    of_runs = ["get /agent/logs/{run_id}/stream", "get /agent/events", of_agents]
    of_deployments = "get /api/deployments/{deployment_id}/logs"
    assert set(streams) == {*of_runs, of_deployments, "get /api/v1/events/stream"}
    for name in streams:
        content = operations(described)[name]["responses"]["200"]["content"]
        assert list(content) == ["text/event-stream"]
        assert content["text/event-stream"]["schema"] == {}
        frame = content["text/event-stream"]["itemSchema"]
        assert frame["properties"].keys() == {"id", "event", "data"}
        if name in of_runs:
            assert frame["properties"]["event"]["enum"] == [type.value for type in EventType]
        assert content["text/event-stream"]["example"].endswith("\n\n")


# --- errors ---


def test_every_operation_names_the_errors_that_it_can_answer(described: Any) -> None:
    makes_what_it_names = {"put_secret", "put_hook"}
    for name, operation in operations(described).items():
        if "/health/" in name:
            continue
        given = set(operation["responses"])
        in_path = any(parameter["in"] == "path" for parameter in operation.get("parameters", []))
        expected = {"401", "429", "503"}
        if operation.get("parameters") or "requestBody" in operation:
            expected |= {"422"}
        if in_path and operation["operationId"] not in makes_what_it_names:
            expected |= {"404"}
        assert expected <= given, f"{name}: {expected - given}"
        for status in ("429", "503"):
            assert "Retry-After" in operation["responses"][status]["headers"], name


def test_the_examples_of_errors_are_problems_with_a_code_that_exists(described: Any) -> None:
    for name, operation in operations(described).items():
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get("application/problem+json")
            if content is None:
                continue
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name
            problem = Problem.model_validate(content["example"])
            assert problem.status == int(status)
            assert problem.code in set(ProblemCode)


# --- words ---


@pytest.mark.parametrize("name", SAME_IN_CODE)
def test_an_enumeration_is_the_one_in_the_code(described: Any, name: str) -> None:
    assert described["components"]["schemas"][name]["enum"] == [member.value for member in SAME_IN_CODE[name]]


def test_words_that_are_derived_from_other_words_are_all_there() -> None:
    assert [name.upper() for name in PriorityName] == [priority.name for priority in Priority]
    assert [name.upper() for name in RiskName] == [risk.name for risk in Risk]
    assert set(WebhookEvent) == {f"run.{status}" for status in (*FINAL, RunStatus.WAITING)}


def test_an_event_is_one_of_all_types_that_there_are(described: Any) -> None:
    schemas = described["components"]["schemas"]
    event = schemas["Event"]
    assert event["discriminator"]["mapping"].keys() == {type.value for type in EventType}
    for type, reference in event["discriminator"]["mapping"].items():
        schema = schemas[reference.rpartition("/")[2]]
        assert schema["properties"]["type"]["const"] == type
        assert set(schema["required"]) == {"id", "run_id", "at", "type", "data"}
        data = schemas[schema["properties"]["data"]["$ref"].rpartition("/")[2]]
        assert data["properties"].keys() | {""} == DATA[EventType(type)].keys(), "docs/reference/events.md differs"


def test_the_codes_of_problems_are_those_that_the_code_can_answer() -> None:
    for package in (backplane, app):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations." not in module.name:
                importlib.import_module(module.name)
    kinds, found = [PlatformError], set[str]()
    for kind in kinds:
        if kind.__module__.partition(".")[0] in ("backplane", "app"):
            found.add(kind.code)
            kinds += kind.__subclasses__()
    for name, arguments in calls("app/**/*.py"):
        if name in ("problem", "_refuse", "_fault") and len(arguments) > 1 and isinstance(arguments[1], str):
            found.add(arguments[1])
        if name == "BodyRefused" and isinstance(arguments[0], str):
            found.add(arguments[0])
    # Given in a tuple.
    found.add("malformed_http")
    assert found == set(ProblemCode)
    assert OF_THE_API.keys() < found


def test_the_codes_of_reasons_are_those_that_explanations_give() -> None:
    names = {"WAITS_FOR_MODEL_SLOT", "WAITS_FOR_MODEL_TOKENS", "WAITS_FOR_EVENT", "WAITS_FOR_RUN"}
    files = ("app/explanation.py", "app/agents/explanation.py")
    found = {arguments[0] for file in files for name, arguments in calls(file) if name == "Reason"}
    assert {code for code in found if code} | {name.lower() for name in names} == set(ReasonCode)


def calls(pattern: str) -> Iterator[tuple[str, list[Any]]]:
    """Names of what is called in these files, each with its arguments as far as they are written out."""
    for path in ROOT.glob(pattern):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield name, [one.value if isinstance(one, ast.Constant) else None for one in node.args]


# --- webhooks ---


def test_the_page_describes_each_webhook_with_the_headers_of_a_signature(described: Any) -> None:
    assert described["webhooks"].keys() == {*WebhookEvent, *Report}
    for event, methods in described["webhooks"].items():
        operation = methods["post"]
        headers = {parameter["name"]: parameter for parameter in operation["parameters"]}
        assert headers.keys() == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        assert all(header["required"] and header["description"] for header in headers.values())
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        message = "ServiceMessage" if event in set(Report) else "WebhookMessage"
        assert body == {"$ref": f"#/components/schemas/{message}"}
        assert operation["responses"].keys() == {"200", "410", "default"}
