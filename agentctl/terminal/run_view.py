"""A run as its page in the terminal shows it."""

import json
from datetime import datetime

from agentctl.api.api_error import JsonObject
from agentctl.terminal.follow import how_it_goes_on
from agentctl.terminal.output import LISTED, Output, duration, first_line, local_time, some_of


def print_run(output: Output, run: JsonObject) -> None:
    """State, times, cost, failures and steps of what `GET /agent/runs/{run_id}` answered."""
    error, error_name = run["error"], "waits" if run["status"] == "waiting" else "error"
    output.fields(
        {
            "run": run["run_id"],
            "status": run["status"],
            "cancel": "asked for" if run["cancel_requested"] and run["status"] != "cancelled" else "",
            "position": position(run),
            "prompt": first_line(run["prompt"]),
            "created": local_time(run["created_at"]),
            "queued": local_time(run["queued_at"]),
            "started": local_time(first_started(run)),
            "went on": local_time(run["started_at"]) if run["started_at"] != first_started(run) else "",
            "finished": local_time(run["finished_at"]),
            "took": between(first_started(run), run["finished_at"]),
            "worker": run.get("worker") or "",
            "attempt": f"{run['attempt']} of {run['max_retries'] + 1}",
            "timeout": duration(run["timeout_seconds"]),
            "priority": run["priority"],
            "queue": "" if run.get("queue") == "default" else run.get("queue", ""),
            "metadata": json.dumps(run["metadata"]) if run["metadata"] else "",
            "made from": _origin(run.get("origin")),
            "agent": "" if run.get("agent") == "default" else run.get("agent", ""),
            "model": run.get("model") or "",
            "handler": run.get("handler") or "",
            "input": json.dumps(run["input"]) if run.get("input") is not None else "",
            "plan": f"version {run['plan_version']}" if run.get("plan_version", 1) > 1 else "",
            "budget": json.dumps(run["budget"]) if run.get("budget") else "",
            error_name: f"{error['message']} [{error['code']}]" if error else "",
            "goes on": how_it_goes_on(run) if run["status"] == "waiting" else "",
            "webhook": _webhook(run.get("webhook")),
            "files": f"removed {local_time(run['files_expired_at'])}" if run.get("files_expired_at") else "",
        }
    )
    result = run.get("result") or {}
    if result.get("summary"):
        output.line()
        for line in result["summary"].splitlines():
            output.line(line)
        output.line()
    if result.get("value") is not None:
        output.fields({"value": json.dumps(result["value"], ensure_ascii=False)})
    output.fields({"files made": _files_made(result), "cost": cost_in_words(result.get("cost"))})
    if len(run.get("failures", [])) > 1:
        output.line()
        failures = [
            [str(failure["attempt"]), local_time(failure["at"]), failure["error"]["message"], failure["error"]["code"]]
            for failure in run["failures"]
        ]
        output.table(["ATTEMPT", "FAILED", "ERROR", "CODE"], failures, folding=["ERROR"])
    if run["steps"]:
        output.line()
        output.table(
            ["STEP", "STATUS", "TOOK", "EXIT", "TOOL", "TITLE"],
            [_step_row(step) for step in run["steps"]],
            folding=["TITLE"],
        )


def _files_made(result: JsonObject) -> str:
    files, left_out = result.get("files") or [], result.get("files_left_out") or 0
    count = len(files) + left_out
    shown = some_of(files, left_out)
    return f"{count:,}: {shown}" if count > LISTED else shown


def _origin(origin: JsonObject | None) -> str:
    if origin is None:
        return ""
    after = f" after step {origin['step']}" if origin.get("step") else ""
    return f"{origin['kind']} of {origin['run_id']}{after}"


def cost_in_words(cost: JsonObject | None) -> str:
    """What the models of a run used, in words; empty when no model was asked."""
    if not cost or not cost.get("model_calls"):
        return ""
    usd = "at an unknown price" if cost.get("usd") is None else f"${cost['usd']:.6f}"
    tokens = f"{cost.get('input_tokens', 0):,} + {cost.get('output_tokens', 0):,} tokens"
    return f"{usd}, {tokens} in {cost['model_calls']} model call{'' if cost['model_calls'] == 1 else 's'}"


def _webhook(webhook: JsonObject | None) -> str:
    if webhook is None:
        return ""
    if webhook["status"] is None:
        return f"{webhook['url']}: nothing to tell yet"
    tries = f"{webhook['attempts']} attempt{'' if webhook['attempts'] == 1 else 's'}"
    error = f", {webhook['last_error']}" if webhook["last_error"] else ""
    return f"{webhook['url']}: {webhook['event']} {webhook['status'].replace('_', ' ')}, {tries}{error}"


def position(view: JsonObject) -> str:
    if view.get("position") is None:
        return ""
    return (
        str(view["position"])
        if view.get("estimated_wait_seconds") is None
        else f"{view['position']}, {wait_in_words(view)}"
    )


def wait_in_words(view: JsonObject) -> str:
    half, most = view["estimated_wait_seconds"], view.get("estimated_wait_p90_seconds")
    if most is None or duration(most) == duration(half):
        return f"about {duration(half)}"
    return f"about {duration(half)}, most likely under {duration(most)}"


def first_started(run: JsonObject) -> str | None:
    """When a worker took it first. `started_at` begins anew when a run goes on, as after an approval; its steps show
    when it was at work before. Steps that it took over from another run are older than itself."""
    starts = [step.get("started_at") for step in run["steps"]]
    own = [start for start in starts if start and _moment(start) >= _moment(run["created_at"])]
    found: str | None = min([*own, *filter(None, [run["started_at"]])], key=_moment, default=None)
    return found


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def between(start: str | None, end: str | None) -> str:
    return duration((_moment(end) - _moment(start)).total_seconds()) if start and end else ""


def _step_row(step: JsonObject) -> list[str]:
    result = step["result"] or {}
    took = duration(result["duration_ms"] / 1000) if result.get("duration_ms") is not None else ""
    exit_code = str(result["exit_code"]) if result.get("exit_code") is not None else ""
    return [step["id"], step["status"], took, exit_code, step["tool"], step["title"]]
