"""agentctl chat: a conversation with an agent in the terminal. Each line is a message; the turn is shown as it happens,
then the answer. A pipe works too: its lines are sent one after another, and each answer comes before the next line."""

import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import Annotated

import typer

from agentctl.api.api_error import ApiError, JsonObject
from agentctl.api.client import Client
from agentctl.commands.agents import AgentArgument, on_agent, print_answer
from agentctl.exit_codes import CommandError, ExitCode, exit_code_of_status
from agentctl.terminal.follow import FollowedRun, how_it_goes_on, still_waits
from agentctl.terminal.output import JsonFlag, Output, program

_BYE = "Ctrl-D or Ctrl-C leaves; the agent stays."


def chat(
    agent: AgentArgument,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print the answers alone.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Talk with an agent: each line that you type is a message. Ctrl-C leaves; a turn that has begun goes on."""
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

    def turn(self, text: str) -> ExitCode:
        """Send a message and show its turn. What the API refuses is shown, and is the end for a pipe."""
        try:
            message = on_agent(self._output, self._agent_id, lambda client, _: self._one_turn(client, text))
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

    async def _one_turn(self, client: Client, text: str) -> JsonObject:
        sent = await client.send_message(self._agent_id, {"text": text})
        self._run_id = sent["run_id"]
        if not self._is_quiet:
            self._output.note(f"turn {sent['turn']}, run {self._run_id}")
        await self._follow(client)
        page = await client.messages(self._agent_id, sent["turn"] + 1, 1)
        found: JsonObject
        for found in page["messages"]:
            if found["run_id"] == self._run_id:
                return found
        raise CommandError(ExitCode.REFUSED, f"Run {self._run_id} has been deleted, and its answer with it.")

    async def _follow(self, client: Client) -> None:
        """Until the turn is over, or asks for what nobody is there to decide."""
        with FollowedRun(self._output) as view:
            async with aclosing(client.events(self._run_id)) as events:
                async for event in events:
                    if not self._is_quiet:
                        view.show(event)
                    if event["data"].get("status") == "waiting" and await still_waits(client, self._run_id, event):
                        run = await client.run(self._run_id)
                        self._output.note(f"It waits for you. {how_it_goes_on(run)}", "magenta")
                        if not self._may_wait:
                            return


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
