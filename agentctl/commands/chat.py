"""agentctl chat: a conversation with an agent in the terminal. Each line is a message; the turn is shown as it happens,
then the answer. What a turn asks is answered in place. A pipe works too: its lines are sent one after another, and each
answer comes before the next line."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import Annotated

import typer

from agentctl.api.api_error import ApiError, JsonObject
from agentctl.api.client import Client
from agentctl.calls import T
from agentctl.commands.agents import AgentArgument, on_agent, print_answer
from agentctl.exit_codes import CommandError, ExitCode, exit_code_of_status
from agentctl.terminal.follow import FollowedRun, how_it_goes_on, still_waits
from agentctl.terminal.output import JsonFlag, Output, program
from agentctl.terminal.questions import asked_in_words, texts_in_lines

_BYE = "Ctrl-D or Ctrl-C leaves; the agent stays."


def chat(
    agent: AgentArgument,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print the answers alone.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Talk with an agent: each line that you type is a message, or the answer to what it asks. Ctrl-C leaves; a turn
    that has begun goes on."""
    output, is_person = Output(json_output), sys.stdin.isatty()
    found = on_agent(output, agent, lambda client, whole: client.agent(whole))
    if is_person:
        output.note(f"{found['name']} of {found['pool']} is {found['status'].replace('_', ' ')}. {_BYE}")
    talk, code = _Talk(output, found["agent_id"], is_quiet=quiet or json_output, may_wait=is_person), ExitCode.OK
    try:
        for line in _lines(is_person):
            code = talk.turn(line)
            if code is not ExitCode.OK and not is_person:
                break
    except KeyboardInterrupt:
        talk.leave()
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(ExitCode.OK if is_person else code)


class _Talk:
    """`may_wait`: somebody sits before it, who can decide what a turn asks while this waits."""

    def __init__(self, output: Output, agent_id: str, *, is_quiet: bool, may_wait: bool) -> None:
        self._output = output
        self._agent_id = agent_id
        self._is_quiet = is_quiet
        self._may_wait = may_wait
        self._run_id = ""
        self._seen = 0
        self._turn = 0

    def turn(self, text: str) -> ExitCode:
        """Send a message and show its turn. What the API refuses is shown, and is the end for a pipe."""
        try:
            self._with_client(lambda client: self._send(client, text))
            view = FollowedRun(self._output)
            follow = partial(self._follow, view=view)
            asked = self._with_client(follow)
            while asked:
                answers = [(one, _answer_to(self._output, one)) for one in asked]
                asked = self._with_client(partial(self._decide, answers=answers)) or self._with_client(follow)
            message = self._with_client(self._message)
        except EOFError:
            raise KeyboardInterrupt from None
        except ApiError as error:
            if not self._may_wait:
                raise
            self._output.note(error.message, "red")
            return error.exit_code
        self._run_id = ""
        if self._output.json:
            self._output.json_line(message)
        else:
            print_answer(self._output, message)
        return exit_code_of_status(message["status"])

    def leave(self) -> None:
        """What a person reads who leaves in the middle of a turn."""
        self._output.note("")
        if self._run_id:
            self._output.note(f"The turn goes on. Follow it: {program()} logs -f {self._run_id}", "bold")

    def _with_client(self, work: Callable[[Client], Awaitable[T]]) -> T:
        return on_agent(self._output, self._agent_id, lambda client, _: work(client))

    async def _send(self, client: Client, text: str) -> None:
        sent = await client.send_message(self._agent_id, {"text": text})
        self._run_id, self._turn, self._seen = sent["run_id"], sent["turn"], 0
        if not self._is_quiet:
            self._output.note(f"turn {sent['turn']}, run {self._run_id}")
        if sent.get("in_mailbox") and not self._is_quiet:
            self._output.note((await client.explain_agent(self._agent_id))["text"])

    async def _message(self, client: Client) -> JsonObject:
        """Raises CommandError where the run has been deleted."""
        page = await client.messages(self._agent_id, self._turn + 1, 1)
        found: JsonObject
        for found in page["messages"]:
            if found["run_id"] == self._run_id:
                return found
        raise CommandError(ExitCode.REFUSED, f"Run {self._run_id} has been deleted, and its answer with it.")

    async def _follow(self, client: Client, view: FollowedRun) -> list[JsonObject]:
        """Until the turn is over, or asks for what nobody is there to decide: then nothing. Else until it asks: the
        decisions that are to be made here."""
        with view:
            async with aclosing(client.events(self._run_id, self._seen)) as events:
                async for event in events:
                    self._seen = event.get("id") or self._seen
                    if not self._is_quiet:
                        view.show(event)
                    if event["data"].get("status") == "waiting" and await still_waits(client, self._run_id, event):
                        if self._may_wait and (asked := await self._asked(client)):
                            return asked
                        run = await client.run(self._run_id)
                        self._output.note(f"It waits for you. {how_it_goes_on(run)}", "magenta")
                        if not self._may_wait:
                            return []
        return []

    async def _asked(self, client: Client) -> list[JsonObject]:
        pending: list[JsonObject] = (await client.decisions(self._run_id, "pending"))["decisions"]
        return [one for one in pending if one["kind"] in ("question", "approval")]

    async def _decide(self, client: Client, answers: list[tuple[JsonObject, JsonObject]]) -> list[JsonObject]:
        """Those that are to be asked again, since their answer is none of the choices."""
        again = []
        for decision, answer in answers:
            try:
                await client.decide(self._run_id, decision["decision_id"], answer)
            except ApiError as error:
                self._output.note(error.message, "red")
                if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                    again.append(decision)
        return again


def _answer_to(output: Output, decision: JsonObject) -> JsonObject:
    """What the person says. Raises EOFError and KeyboardInterrupt: the turn waits."""
    is_question = decision["kind"] == "question"
    output.line(asked_in_words(decision), "magenta")
    for line in texts_in_lines(decision):
        output.line(f"  {line}")
    while not (typed := input("your answer> " if is_question else "approve it? [y/n]> ").strip()):
        pass
    if is_question:
        return {"decision": "answer", "text": typed}
    if typed.lower() in ("y", "yes"):
        return {"decision": "approve"}
    return {"decision": "reject", "reason": "" if typed.lower() in ("n", "no") else typed}


def _lines(is_person: bool) -> Iterator[str]:
    """What is typed, or piped, without empty lines. Raises CommandError(USAGE) for what is not UTF-8."""
    while True:
        try:
            if is_person:
                line = input("> ")
            elif not (line := sys.stdin.readline()):
                return
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise CommandError(ExitCode.USAGE, f"What is piped is not UTF-8 text: {error}.") from None
        if text := line.strip():
            yield text
