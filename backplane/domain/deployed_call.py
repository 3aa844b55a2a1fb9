"""The plan of a run that a deployed agent carries out: one step, so that it has what every run has."""

from typing import Any

from backplane.domain.deployments import Deployment

STEP_ID = "agent"
TOOL = "deployed_agent"
TIMEOUT_MAX_SECONDS = 86_400
"""Of one call of a deployed agent."""


def plan_of_call(deployment: Deployment, given: Any, timeout_seconds: int) -> dict[str, Any]:
    """`given`: the agent's input, a JSON value. `timeout_seconds`: of one call. The deployment is named by its id, so
    a retry reaches the same one. Only where the agent's manifest says that it knows a repeated call, one that may have
    happened is repeated without a person."""
    revision = deployment.effective or deployment.current
    step = {
        "id": STEP_ID,
        "tool": TOOL,
        "title": f"{deployment.agent_id} ({deployment.namespace})",
        "arguments": {
            "deployment": deployment.id,
            "input": _without_references(given),
            "timeout_seconds": min(timeout_seconds, TIMEOUT_MAX_SECONDS),
        },
        "repeatable": revision.manifest.idempotent,
    }
    return {"steps": [step]}


def _without_references(value: Any) -> Any:
    """The value so that it comes out of the plan as it is: there is no other step that it could refer to."""
    match value:
        case str():
            return value.replace("${steps.", "$${steps.")
        case dict():
            return {name: _without_references(inner) for name, inner in value.items()}
        case list():
            return [_without_references(inner) for inner in value]
    return value
