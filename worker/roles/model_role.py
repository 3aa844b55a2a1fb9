"""A role whose turns a model carries out: round by round it names actions, or gives the answer.

Each round is one call of the model and each action one effect of the turn, so a turn that goes on after a crash asks
nothing and does nothing twice. Tools have the rights that they have in a plan: approvals, limits, budgets and secrets
are decided where every step's are. The model sees its instructions, the summary and the last turns of the
conversation, the message, and what came of its actions in this turn; what tools and others gave is marked as data.

The last round may only answer. So a turn ends with an answer, or with an error of the model's, and never for want of
rounds.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backplane.domain.secrets import SECRET_REFERENCE
from backplane.errors import InvalidPlan
from worker.handlers.run import HandlerEffect, StepError, ToolOutput
from worker.llm import prompts
from worker.llm.untrusted_json import storable
from worker.roles.conversation import Conversation, ConversationTurn, words_of
from worker.roles.role import AgentMessage, Role
from worker.roles.role_file import RoleFile
from worker.roles.turn import AgentTurn
from worker.tools.agent import AgentTool
from worker.tools.base import Risk, Tool
from worker.tools.registry import describe, validate_arguments

ASK_AGENT, SEND_MESSAGE = "ask_agent", "send_message"
RESULT_CHARS = 10_000
"""Of what one action gave, what the model is shown."""
DONE_CHARS = 60_000
"""Of what all actions of a turn gave: older results are left out then."""
FILES_NAMED = 20
SUMMARY_CHARS = 6_000
WORDS_CHARS = 2_000
DATA_CHARS = 20_000
ASK_SECONDS_MAX = 7 * 86_400

_TO_COLLEAGUES: dict[str, dict[str, Any]] = {
    ASK_AGENT: {
        "description": "Ask another agent, and get its answer. It sees this message alone.",
        "parameters": {
            "type": "object",
            "properties": {
                "agent": {"type": "string", "description": "The colleague's name."},
                "message": {"type": "string"},
                "timeout_seconds": {"type": "number", "description": "How long to wait for the answer, at most."},
            },
            "required": ["agent", "message"],
        },
    },
    SEND_MESSAGE: {
        "description": "Send another agent a message, and go on without an answer.",
        "parameters": {
            "type": "object",
            "properties": {"agent": {"type": "string"}, "message": {"type": "string"}},
            "required": ["agent", "message"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class _Action:
    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Done:
    action: _Action
    words: str


class ModelRole(Role):
    """Made of a file (`worker.roles.role_file`)."""

    def __init__(self, file: RoleFile) -> None:
        self.file = file
        self.name = file.name
        self.description = file.description
        self.model = file.model
        self.listens_to = tuple(file.listens_to)

    async def on_message(self, message: AgentMessage, agent: AgentTurn) -> str:
        limits, offered = self.file.limits, self._offered(agent)
        seen = await agent.look_around(limits.conversation_tokens)
        to_sum_up, shown = seen.split(limits.conversation_tokens)
        summary = seen.summary
        if to_sum_up:
            summary = await self._summed_up(agent, seen.summary, to_sum_up)
        opening = _opening(message, summary, shown, seen if _has_colleagues(offered) else None)
        secrets = _secrets_named(self.file.instructions, message)
        rounds: list[list[_Done]] = []
        for number in range(1, limits.rounds + 1):
            is_last = number == limits.rounds
            given = await self._round(
                agent, offered, f"{opening}{_so_far(rounds)}{_ending(is_last=is_last)}", secrets, number
            )
            if given["answer"] is not None:
                return str(given["answer"])
            actions = [_Action(one["tool"], one["arguments"]) for one in given["actions"]]
            rounds.append(await _carry_out(agent, offered, actions))
        raise AssertionError("the last round gives an answer")

    # --- the model ---

    async def _round(
        self, agent: AgentTurn, offered: Mapping[str, Tool | None], prompt: str, secrets: frozenset[str], number: int
    ) -> Any:
        """{"answer", "actions"}: one of the two is there."""
        limits = self.file.limits
        is_last = number == limits.rounds

        def check(found: dict[str, Any]) -> dict[str, Any]:
            return _checked(found, offered, secrets, most=0 if is_last else limits.actions)

        arguments = {
            "prompt": prompt,
            "system": self._system(agent, offered),
            "schema": _schema(() if is_last else tuple(offered), limits.actions),
        }
        return await agent.answer_of_model(f"round-{number}", arguments, check, {"round": number})

    async def _summed_up(self, agent: AgentTurn, before: str, turns: Sequence[ConversationTurn]) -> str:
        """The summary with these turns, which the turn's end keeps."""
        since = "\n\n".join(_turn_in_words(turn) for turn in turns)
        prompt = f"{_part('The summary so far', before)}{_part('Turns since then', since)}Write the new summary."
        arguments = {"prompt": prompt, "system": _SUM_UP}
        until = turns[-1].turn
        given = await agent.answer_of_model("summary", arguments, None, {"until_turn": until})
        text = prompts.head_and_tail(str(given).strip(), SUMMARY_CHARS)
        agent.keep_summary(until, text)
        return text

    def _system(self, agent: AgentTurn, offered: Mapping[str, Tool | None]) -> str:
        tools = "\n".join(_tool_in_words(name, tool) for name, tool in offered.items()) or "(none)"
        return (
            f"You are {agent.name}, an agent with the role {self.name}. You get messages, one after another, and "
            f"answer each of them.\n\n{self.file.instructions.strip()}\n\n{_HOW}\n\nYour tools:\n{tools}\n\n"
            f"{prompts.RULES_ON_DATA}"
        )

    def _offered(self, agent: AgentTurn) -> dict[str, Tool | None]:
        """What the model may use, by name; None stands for what is no tool of a plan. A name that the worker has no
        tool for is left out, and the turn's log says so."""
        wanted, there = self.file.tools, agent.tools
        if wanted is None:
            usable = [tool.name for tool in there.tools() if tool.risk < Risk.HIGH and tool.name != AgentTool.name]
            wanted = [*sorted(usable), *_TO_COLLEAGUES]
        missing = [name for name in wanted if name not in _TO_COLLEAGUES and there.get(name) is None]
        if missing:
            agent.log(f"the role {self.name!r} names tools that this worker has not: {', '.join(missing)}")
        return {name: there.get(name) for name in wanted if name not in missing}


_HOW = """\
Each of your replies is one JSON object and nothing else, in one of two forms:

{"actions": [{"tool": NAME, "arguments": {…}}, …]} has tools called, and you are shown what came of it. Arguments fit \
the tool's schema exactly. Put calls that do not depend on one another into one reply.
{"answer": TEXT} ends your turn: the text goes to whoever sent the message. Answer as soon as you can. Say what you \
did and found, and what you could not do."""

_SUM_UP = f"""\
You keep the memory of an agent's conversation. Write a summary that takes the place of the turns you are shown, in at \
most twenty plain sentences: what was asked, what was done and found, what was decided, names, figures and paths that \
may be needed again, and what is still open. Keep what the summary so far says, unless it was replaced. Text only.

{prompts.RULES_ON_DATA}"""


def _has_colleagues(offered: Mapping[str, Tool | None]) -> bool:
    return any(name in offered for name in _TO_COLLEAGUES)


# --- what the model answers ---


def _schema(tools: Sequence[str], actions: int) -> dict[str, Any]:
    """Without tools: the answer alone."""
    answer = {"type": "string", "description": "The text that answers the message."}
    if not tools:
        return {"type": "object", "properties": {"answer": answer}, "required": ["answer"]}
    action = {
        "type": "object",
        "properties": {"tool": {"type": "string", "enum": list(tools)}, "arguments": {"type": "object"}},
        "required": ["tool", "arguments"],
    }
    listed = {"type": "array", "items": action, "maxItems": actions}
    return {"type": "object", "properties": {"actions": listed, "answer": answer}}


def _checked(
    found: Mapping[str, Any], offered: Mapping[str, Tool | None], secrets: frozenset[str], *, most: int
) -> dict[str, Any]:
    """Raises ValueError, in words for the model."""
    unknown = sorted(set(found) - {"actions", "answer"})
    if unknown:
        raise ValueError(f"it has a field {unknown[0][:100]!r}; give actions, or answer, and nothing else")
    actions, answer = found.get("actions") or [], found.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise ValueError("answer must be a text")
    if not actions:
        if answer is None or not answer.strip():
            raise ValueError("it has neither actions nor an answer; give one of the two")
        return {"answer": storable(answer), "actions": []}
    if not most:
        raise ValueError("no action can be carried out any more; give the answer")
    if answer and answer.strip():
        raise ValueError("it has actions and an answer; give one of the two")
    if not isinstance(actions, list) or len(actions) > most:
        raise ValueError(f"actions must be a list of 1 to {most}")
    return {"answer": None, "actions": [_checked_action(one, offered, secrets) for one in actions]}


def _checked_action(one: Any, offered: Mapping[str, Tool | None], secrets: frozenset[str]) -> dict[str, Any]:
    if not isinstance(one, dict) or set(one) - {"tool", "arguments"}:
        raise ValueError('an action is an object {"tool", "arguments"}')
    name, arguments = one.get("tool"), one.get("arguments") or {}
    if not isinstance(name, str) or name not in offered:
        raise ValueError(f"you have no tool {str(name)[:100]!r}; you have: {', '.join(offered) or 'none'}")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name} must be an object")
    others = sorted(set(SECRET_REFERENCE.findall(json.dumps(arguments))) - secrets)
    if others:
        raise ValueError(f"you may not use the secret {others[0]}: neither your instructions nor the message names it")
    tool = offered[name]
    if tool is None:
        _check_to_colleague(name, arguments)
    else:
        try:
            validate_arguments(tool, arguments, "arguments")
        except InvalidPlan as error:
            raise ValueError(f"{name} does not take these arguments: {error.message}") from None
    return {"tool": name, "arguments": arguments}


def _check_to_colleague(name: str, arguments: Mapping[str, Any]) -> None:
    allowed = _TO_COLLEAGUES[name]["parameters"]["properties"]
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ValueError(f"{name} takes no {unknown[0][:100]!r}; it takes {', '.join(allowed)}")
    for one in ("agent", "message"):
        if not isinstance(arguments.get(one), str) or not arguments[one].strip():
            raise ValueError(f"{name} needs {one}, a text")
    seconds = arguments.get("timeout_seconds")
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= ASK_SECONDS_MAX
    ):
        raise ValueError(f"timeout_seconds must be a number of seconds, at most {ASK_SECONDS_MAX:,}")


def _secrets_named(instructions: str, message: AgentMessage) -> frozenset[str]:
    """Secrets that actions may use: those that the role's author or the person who wrote the message has named, also
    for a schedule to send. What another agent or an event says can allow none."""
    is_of_person = message.sender.kind in ("person", "schedule")
    text = f"{instructions}\n{message.text}" if is_of_person else instructions
    return frozenset(SECRET_REFERENCE.findall(text))


# --- what is done ---


async def _carry_out(agent: AgentTurn, offered: Mapping[str, Tool | None], actions: Sequence[_Action]) -> list[_Done]:
    """At once where that is the same as one after another: questions and messages, and tools that change nothing."""
    if all((tool := offered[one.tool]) is None or tool.read_only for one in actions):
        # Numbered in their order, whichever begins first.
        effects = [_effect(agent, one) for one in actions]
        words = await asyncio.gather(*map(_outcome, effects))
    else:
        words = [await _outcome(_effect(agent, one)) for one in actions]
    return [_Done(action, text) for action, text in zip(actions, words, strict=True)]


def _effect(agent: AgentTurn, action: _Action) -> HandlerEffect[Any]:
    arguments = action.arguments
    if action.tool == ASK_AGENT:
        return agent.ask(arguments["agent"], arguments["message"], timeout=arguments.get("timeout_seconds"))
    if action.tool == SEND_MESSAGE:
        return agent.send(arguments["agent"], arguments["message"])
    return agent.tool(action.tool, **arguments)


async def _outcome(effect: HandlerEffect[Any]) -> str:
    """What the model is shown of an action: how it ended in our words, and all else as data."""
    name, place = effect.kind, f"effect {effect.ordinal}"
    try:
        value = await effect
    except StepError as error:
        text = prompts.head_and_tail(f"{error.message}\n{error.output}".strip(), RESULT_CHARS)
        return f"failed ({error.code}).\n{prompts.data(text, source=name, place=place)}"
    if isinstance(value, ToolOutput):
        changed = f", and changed {len(value.files)} files" if value.files else ""
        names = f"\nfiles: {', '.join(value.files[:FILES_NAMED])}" if value.files else ""
        text = f"{value.output}{names}"
    else:
        changed, text = "", words_of(value)
    if not text.strip():
        return f"succeeded{changed}, and printed nothing."
    shown = prompts.data(prompts.head_and_tail(text, RESULT_CHARS), source=name, place=place)
    return f"succeeded{changed}.\n{shown}"


# --- what the model is shown ---


def _part(title: str, text: str) -> str:
    return f"{title}:\n\n{text}\n\n" if text else ""


def _opening(message: AgentMessage, summary: str, turns: Sequence[ConversationTurn], seen: Conversation | None) -> str:
    conversation = "\n\n".join(_turn_in_words(turn) for turn in turns)
    parts = [_part("Earlier turns, summed up", summary), _part("The last turns", conversation)]
    if seen is not None:
        names = "\n".join(f"- {one.name}: {one.role} (pool {one.pool})" for one in seen.colleagues)
        parts.append(_part("Your colleagues", names or "(none)"))
    text = storable(message.text)
    if message.sender.kind == "event":
        text = prompts.data(text, source="event", place="message")
    if message.data is not None:
        data = prompts.head_and_tail(json.dumps(message.data, ensure_ascii=False), DATA_CHARS)
        text += f"\n\nData that came with it:\n{prompts.data(data, source='message', place='data')}"
    parts.append(_part(f"The message to answer, from {message.sender}", text))
    return "".join(parts)


def _turn_in_words(turn: ConversationTurn) -> str:
    answer = f"no answer: it {turn.status}" if turn.answer is None else turn.answer
    message = prompts.data(storable(turn.message), source=turn.sender, place=f"turn {turn.turn}")
    return f"Turn {turn.turn}, {turn.sender}:\n{message}\nYou: {storable(answer)}"


def _so_far(rounds: Sequence[Sequence[_Done]]) -> str:
    if not rounds:
        return ""
    room, lines = DONE_CHARS, list[str]()
    for number in range(len(rounds), 0, -1):
        for done in reversed(rounds[number - 1]):
            arguments = prompts.head_and_tail(json.dumps(done.action.arguments, ensure_ascii=False), WORDS_CHARS)
            words = done.words
            if len(words) > room:
                words = f"{words.splitlines()[0]} (What it gave is left out to make room. Do it again if needed.)"
            room -= len(words)
            lines.append(f"Round {number}: {done.action.tool} {arguments}\nIt {words}")
    return _part("What you have done in this turn", "\n\n".join(reversed(lines)))


def _ending(*, is_last: bool) -> str:
    if is_last:
        return 'You have no round left. Reply with {"answer": TEXT}: what you did, what you found, and what is open.'
    return "Reply with one JSON object."


def _tool_in_words(name: str, tool: Tool | None) -> str:
    described = _TO_COLLEAGUES[name] if tool is None else describe(tool)
    parameters = json.dumps(described["parameters"], separators=(",", ":"), ensure_ascii=False)
    return f"- {name}: {described['description']} Arguments: {parameters}"
