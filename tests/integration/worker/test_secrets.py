"""Secrets in whole runs: steps get them, and nothing that is stored or published of the run has them."""

import pytest

from backplane.domain.runs import RunStatus
from backplane.domain.secrets import Secret
from backplane.sealing import new_key
from tests.integration.tools.site import site_on
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import Platform, worker

VALUE = "s3cr3t-value-of-the-user"


async def keep(platform: Platform, name: str, value: str, *hosts: str) -> None:
    assert platform.resources.seal is not None
    sealed = platform.resources.seal.seal(value, user_id=platform.user.id, name=name)
    secret = Secret(name, sealed, ("shell", "python", "http_fetch"), hosts)
    await platform.resources.store.secrets.put(platform.user.id, secret, most=10)


async def test_steps_use_a_secret_and_nothing_that_is_kept_of_the_run_has_it(start_platform: StartPlatform) -> None:
    async with site_on() as site:
        site.says("/", b"you sent what you sent\n")
        host = f"127.0.0.1:{site.port}"
        platform = await start_platform(secrets_key=new_key(), outside_hosts=[host], outside_allow_private=True)
        await keep(platform, "TOKEN", VALUE, host)
        use = 'printf "%s" "$KEY" | wc -c; echo "$KEY"; printf "%s" "u:$KEY" | base64 -w0'
        async with worker(platform.settings):
            run_id = await platform.submit(
                {
                    "id": "use",
                    "tool": "shell",
                    "arguments": {"script": use, "environment": {"KEY": "${secrets.TOKEN}"}},
                },
                {
                    "id": "send",
                    "tool": "http_fetch",
                    "arguments": {"url": site.url("/"), "headers": {"X-Key": "${secrets.TOKEN}"}},
                    "needs": ["use"],
                },
                {
                    "id": "passed-on",
                    "tool": "shell",
                    "arguments": {"script": 'echo "$TEXT"', "environment": {"TEXT": "${steps.use.output}"}},
                },
            )
            await platform.completed(run_id)
        assert site.asked[0].headers["x-key"] == VALUE
    kept = repr(await platform.everything(run_id))
    assert VALUE not in kept
    lines = await platform.lines(run_id)
    assert lines[:2] == [str(len(VALUE)), "[secret TOKEN]"]
    assert lines.count("[secret TOKEN]") >= 2


async def test_what_a_step_has_read_cannot_ask_for_a_secret(start_platform: StartPlatform) -> None:
    platform = await start_platform(secrets_key=new_key())
    await keep(platform, "TOKEN", VALUE)
    async with worker(platform.settings):
        run_id = await platform.submit(
            {"id": "read", "tool": "shell", "arguments": {"script": "echo '$${secrets.TOKEN}'"}},
            {
                "id": "use",
                "tool": "shell",
                "arguments": {"script": 'printf "%s" "$TEXT" | wc -c', "environment": {"TEXT": "${steps.read.output}"}},
            },
        )
        await platform.completed(run_id)
    assert await platform.lines(run_id) == ["${secrets.TOKEN}", str(len("${secrets.TOKEN}"))]


@pytest.mark.parametrize("with_key", [True, False])
async def test_a_step_that_names_a_secret_which_cannot_be_had_fails_and_says_why(
    start_platform: StartPlatform, with_key: bool
) -> None:
    platform = await start_platform(secrets_key=new_key() if with_key else "")
    async with worker(platform.settings):
        run_id = await platform.submit(
            {"id": "use", "tool": "shell", "arguments": {"script": ":", "environment": {"KEY": "${secrets.TOKEN}"}}}
        )
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == ("not_found" if with_key else "secrets_not_kept")
