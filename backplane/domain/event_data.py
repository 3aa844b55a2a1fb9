"""What the `data` of each type of event contains: docs/reference/events.md is made of it, and tests hold every event of
a real worker to it. The name "" says when such an event comes."""

from collections.abc import Mapping

from backplane.domain.events import EventType

_ERROR = "{code, message, retryable, step}: what it failed of"
_OF_STEP = "id of the step; of one below an agent's, {step}/{round}.{turn}.{n}"

DATA: Mapping[EventType, Mapping[str, str]] = {
    EventType.STATUS: {
        "": "the run has another state",
        "status": "created, queued, running, waiting, completed, failed or cancelled",
        "attempt": "which try it is, from 1",
        "error": f"{_ERROR}, or what it waits for",
        "reason": "why it is queued again, or goes on",
        "origin": "{kind, run_id, step}: of a fork or a replay, what it was made from",
    },
    EventType.POSITION: {
        "": "where a queued run stands, sent to those who watch, without a number; kept nowhere",
        "position": "place in the queue, from 1",
        "estimated_wait_seconds": "half of such runs wait no longer; null while no worker is alive",
        "estimated_wait_p90_seconds": "nine of ten such runs wait no longer",
    },
    EventType.PLAN: {
        "": "there is a plan, or another one in its place",
        "planner": "given, runbook or model",
        "version": "from 1",
        "reason": "why it takes the place of the one before",
        "note": "where a model could have read the prompt, or not: how to choose the other planner",
        "steps": "[{id, title, tool}], in an order in which they can be carried out",
    },
    EventType.STEP: {
        "": "a step has begun or ended",
        "step": _OF_STEP,
        "title": "what a person reads",
        "tool": "name of its tool",
        "status": "started, completed, failed, retrying, uncertain or interrupted",
        "exit_code": "0 is success",
        "duration_ms": "milliseconds that the try took",
        "files_changed": "paths, of at most so many files as its result keeps",
        "files_left_out": "how many more changed, where the list is cut",
        "error": _ERROR,
        "reason": "why it was interrupted",
        "effect": "what a failed try has done outside: answered, possible or certain",
        "final": "true: no further attempt of the run carries it out again",
        "pause_seconds": "until it is tried again",
    },
    EventType.DECISION: {
        "": "a person is asked something, or has answered",
        "decision": "its id",
        "step": "id of the step; empty: the planner",
        "kind": "approval, question or budget",
        "status": "pending, approved, rejected or answered",
        "asked": "what is asked, its texts shortened",
        "answer": "what the person said",
    },
    EventType.MODEL: {
        "": "a call of a model has ended",
        "step": "id of the step; empty: the planner",
        "purpose": "plan, repair, replan, agent or summary",
        "number": "counts the calls of this step and purpose",
        "model": "SERVER/NAME",
        "status": "completed, failed, retrying or cancelled",
        "duration_ms": "milliseconds that the call took",
        "input_tokens": "of the prompt",
        "output_tokens": "of the answer",
        "usd": "dollars; null where the price is not known",
        "error": "{code, message}",
        "replayed": "true: the answer was taken from the run that this one replays",
    },
    EventType.PROGRESS: {
        "": "how far a model's answer or a handler is, sent to those who watch, without a number; kept nowhere",
        "step": "id of the step; empty: the planner",
        "purpose": "as of `model`",
        "number": "as of `model`",
        "model": "SERVER/NAME",
        "output_tokens": "so far",
        "seconds": "since the call began",
        "text": "what it has answered since the last such event, where the step streams; what a handler says",
        "done": "of a handler (its purpose is handler): how much is done",
        "total": "of a handler: of so much",
    },
    EventType.LOG: {
        "": "a line that a step wrote, or that the platform says of the run",
        "line": "without its line break",
        "step": "id of the step that wrote it; left out: the platform",
        "level": "info or warning, where the platform says it",
        "dropped_lines": "so many lines were left out here",
        "file": "the file of the run that has the whole output",
    },
    EventType.GAP: {
        "": "the events between two ids are not to be had",
        "after": "the last id before them",
        "before": "the first id behind them",
        "reason": "why",
    },
    EventType.END: {
        "": "the run is over; the last event, unless its user retries it",
        "status": "completed, failed or cancelled",
        "error": _ERROR,
        "result": "{summary, files, files_left_out?, cost}",
    },
}
