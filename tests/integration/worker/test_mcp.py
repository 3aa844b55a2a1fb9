"""Tools of an MCP server in a whole run: it is asked when the run is taken, and its tools are steps like any other."""

from pathlib import Path

from backplane.domain.runs import RunStatus
from backplane.domain.secrets import Secret
from backplane.sealing import new_key
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import worker

CALCULATOR = Path(__file__).parents[1] / "mcp" / "calculator.py"
VALUE = "the-key-of-the-calculator"
SERVERS = {
    "calc": {
        "command": ["python3", "-c", CALCULATOR.read_text()],
        "environment": {"CALC_KEY": "${secrets.CALC_KEY}"},
    }
}


async def test_a_runs_steps_use_the_tools_of_the_servers_that_it_names(start_platform: StartPlatform) -> None:
    platform = await start_platform(mcp_servers=SERVERS, secrets_key=new_key())
    assert platform.resources.seal is not None
    sealed = platform.resources.seal.seal(VALUE, user_id=platform.user.id, name="CALC_KEY")
    await platform.resources.store.secrets.put(platform.user.id, Secret("CALC_KEY", sealed, ("mcp",), ()), most=10)
    async with worker(platform.settings):
        run_id = await platform.submit(
            {"id": "add", "tool": "calc__add", "arguments": {"a": 2, "b": 40}},
            {"id": "key", "tool": "calc__behave", "arguments": {"how": "environment"}},
            {"id": "say", "tool": "shell",
             "arguments": {"script": 'echo "$SUM"', "environment": {"SUM": "${steps.add.output}"}}},
            mcp_servers=["calc"],
        )  # fmt: skip
        await platform.completed(run_id)
    lines = await platform.lines(run_id)
    assert [line for line in lines if line in ("42", "[secret CALC_KEY]")] == ["42", "[secret CALC_KEY]", "42"]
    assert VALUE not in repr(await platform.everything(run_id))


async def test_without_naming_the_server_its_tools_are_not_there(start_platform: StartPlatform) -> None:
    platform = await start_platform(mcp_servers=SERVERS)
    async with worker(platform.settings):
        run_id = await platform.submit({"id": "add", "tool": "calc__add", "arguments": {"a": 2, "b": 40}})
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert "there is no tool 'calc__add'" in run.error.message
