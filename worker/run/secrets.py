"""A run's way to its user's secrets: `${secrets.NAME}` becomes the value where a tool uses it, and nowhere before.

Plans, prompts, events and the journal hold the name. The value is read and opened at each use, so that one that was
changed holds from the next step on. Before it is given out, the run's redactor learns it, and it is kept with the run,
sealed as it was: whoever takes the run over, and a run that is made from it, redacts it too, also when the secret has
been changed or deleted since.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from backplane.domain.runs import Run
from backplane.domain.secrets import SECRET_REFERENCE, SealedValue, Secret, unescaped
from backplane.errors import Forbidden
from backplane.net.hosts import HostRules
from backplane.sealing import Seal, SecretsNotKept, no_key
from backplane.store import SecretStore
from worker.run.redaction import Redactor


class RunSecrets:
    """`seal` is None where SECRETS_KEY is not set: then nothing can be filled in, and texts without a secret stay as
    they are."""

    def __init__(self, secrets: SecretStore, seal: Seal | None, run_id: str, user_id: str, redactor: Redactor) -> None:
        self._secrets = secrets
        self._seal = seal
        self._run_id = run_id
        self._user_id = user_id
        self._redactor = redactor
        self._opened: set[SealedValue] = set()
        self._kept: set[SealedValue] = set()
        """The values that are stored with the run."""
        self._keeping = asyncio.Lock()

    async def learn(self, names: Collection[str], *, was_given_some: bool) -> None:
        """The secrets of these names, as they are now, since a file may hold a value before a step uses it; and with
        `was_given_some` all that the run was given before.

        Raises SecretsNotKept when one that the run was given cannot be opened any more: it could not be redacted.
        """
        if was_given_some:
            for value in await self._secrets.kept_with_run(self._run_id):
                try:
                    self._learn(value)
                    self._kept.add(value)
                except SecretsNotKept as error:
                    raise SecretsNotKept(
                        f"this run was given the secret {value.name}, and the platform cannot redact it any more: put "
                        "the key that SECRETS_KEY had then back, behind a comma, or start the work as a new run"
                    ) from error
                # To learn a value of many lines takes time.
                await asyncio.sleep(0)
        now = await self._secrets.named(self._user_id, names) if names and self._seal else frozenset()
        for value in now - self._opened:
            # A value that cannot be opened fails the step that uses it.
            with suppress(SecretsNotKept):
                self._learn(value)
            await asyncio.sleep(0)
        await self._keep(now & self._opened)

    async def _keep(self, values: Collection[SealedValue]) -> None:
        """Store the values with the run. Returns when they are stored, also where another step is about to do so."""
        if self._kept.issuperset(values):
            return
        async with self._keeping:
            if new := frozenset(values) - self._kept:
                await self._secrets.keep_with_run(self._run_id, new)
                self._kept |= new

    def _learn(self, value: SealedValue) -> str:
        if self._seal is None:
            raise no_key()
        opened = self._seal.open(value.sealed, user_id=self._user_id, name=value.name)
        self._redactor.learn(value.name, opened)
        self._opened.add(value)
        return opened

    def of_tool(self, tool: str, written: Any = None) -> "ToolSecrets":
        """A `worker.tools.base.Secrets`: what this tool may have. `written`, any JSON value, is what the plan
        (or a person) wrote as the step's arguments, before results of other steps are put in: only secrets that are
        named there are filled in, for what a step read somewhere must not be able to ask for one. All, when it is left
        out."""
        return ToolSecrets(self, tool, None if written is None else frozenset(_named_in(written)))

    async def value_of(self, name: str, tool: str, host: str | None) -> str:
        """Raises NotFound, Forbidden, or Conflict when it cannot be opened."""
        if self._seal is None:
            raise no_key()
        secret = await self._secrets.get(self._user_id, name)
        _check(secret, tool, host)
        sealed = SealedValue(name, secret.sealed)
        value = self._learn(sealed)
        await self._keep([sealed])
        return value


@dataclass(frozen=True, slots=True)
class ToolSecrets:
    run: RunSecrets
    tool: str
    named: frozenset[str] | None

    async def fill(self, text: str, *, host: str | None = None) -> str:
        """Replace each `${secrets.NAME}`; `$${secrets.NAME}` loses its first `$`. `host` (`name` or `name:port`) is
        where the text is to be sent; None: into the sandbox, which has no network."""
        parts, done = [], 0
        for match in SECRET_REFERENCE.finditer(text):
            if self.named is not None and match[1] not in self.named:
                continue
            value = await self.run.value_of(match[1], self.tool, host)
            parts += [unescaped(text[done : match.start()]), value]
            done = match.end()
        return "".join([*parts, unescaped(text[done:])])


def named_in_run(run: Run) -> frozenset[str]:
    """The secrets that its prompt, its plans and its input name."""
    texts = [run.prompt, *(repr(value) for value in (run.given_plan, run.plan, run.input) if value is not None)]
    return frozenset(name for text in texts if "${secrets." in text for name in SECRET_REFERENCE.findall(text))


def _named_in(value: Any) -> Iterator[str]:
    match value:
        case str() if "${secrets." in value:
            yield from SECRET_REFERENCE.findall(value)
        case dict():
            for inner in value.values():
                yield from _named_in(inner)
        case list() | tuple():
            for inner in value:
                yield from _named_in(inner)


def _check(secret: Secret, tool: str, host: str | None) -> None:
    if tool not in secret.tools:
        raise Forbidden(
            f"the secret {secret.name} may not be used by the tool {tool}; its owner may add "
            "the tool to the secret's `tools`"
        )
    if host is not None and not HostRules.of(secret.hosts).allow_host(host):
        raise Forbidden(
            f"the secret {secret.name} may not be sent to {host}; its owner may add the host to the secret's `hosts`"
        )
