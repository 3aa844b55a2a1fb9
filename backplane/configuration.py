"""How a process comes by its settings: every fault of the environment and of `.env` is one error with a sentence, and
names that look like misspelt settings are reported.

A name that is no setting is no fault, since the environment holds much that is not ours. But one that differs from a
setting by a letter or two is most likely meant for it, and would have no effect.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import SettingsError

from backplane.errors import InvalidInput
from backplane.process.log import complaint
from backplane.settings import ENV_FILE, Settings, fixed

LIKENESS = 0.85
"""The least likeness of two names, as `difflib` measures it: WORKER_CONCURENCY is found (0.97), AWS_REGION is not taken
for S3_REGION."""
_UNIT = re.compile("_(MS|MILLISECONDS|SECONDS|SECS|S|MINUTES|HOURS|DAYS|BYTES|KB|MB|GB|CHARS)$")
NO_LONGER_USED = {
    name: str(value) for name, value in vars(fixed).items() if name.isupper() and name not in fixed.NEVER_SETTINGS
} | fixed.REPLACED
"""Names of settings that became constants, and at which value."""
_OTHERS = frozenset({"AGENT_URL", "AGENT_TOKEN"})
"""Names that the command line reads."""

log = structlog.get_logger()


def read_settings(**overrides: Any) -> Settings:
    """Raises InvalidInput, whose message holds no value: it may be a secret."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise InvalidInput(complaint(error)) from None
    except SettingsError as error:
        raise InvalidInput(f"the settings cannot be used: {_not_json(error)}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(_not_utf8(error)) from None
    except OSError as error:
        raise InvalidInput(f"{ENV_FILE} cannot be read: {error.strerror or error}") from None


def ensure_utf8() -> None:
    """Raises InvalidInput where this process has another encoding for names of files and words of commands: what it
    cannot encode would look like a disk or a sandbox that fails."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower() != "utf-8":
        raise InvalidInput(
            f"names of files and words of commands are {encoding} in this process, and have to be UTF-8: set "
            "PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
        )


def _not_json(error: SettingsError) -> str:
    field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), None)
    return f"{field.upper()}: this is not JSON, which it must be" if field else str(error)


def _not_utf8(error: UnicodeDecodeError) -> str:
    line = error.object[: error.start].count(b"\n") + 1
    byte = error.object[error.start]
    return f"{ENV_FILE}, line {line}: byte {byte:#04x} is not UTF-8; save the file as UTF-8"


@dataclass(frozen=True, slots=True)
class Misspelt:
    """`where` is "the environment" or the file; `meant` is the setting that is most like it, and empty for a name that
    was a setting once (`backplane.settings.fixed`)."""

    name: str
    where: str
    meant: str

    def __str__(self) -> str:
        if not self.meant:
            value = NO_LONGER_USED[self.name.upper()]
            return f"{self.name} in {self.where} is no longer used: it is fixed at {value}, and the line can be deleted"
        return f"{self.name} in {self.where} is no setting and has no effect; is {self.meant} meant?"


def misspelt(
    settings: Settings, environment: Mapping[str, str] = os.environ, file: Path = Path(ENV_FILE)
) -> list[Misspelt]:
    """Names that are most likely meant for a setting, those of the file first."""
    given = _OTHERS | {str(entry.get("api_key_env", "")).upper() for entry in settings.model_servers.values()}
    in_file = dotenv_values(file, encoding="utf-8-sig", interpolate=False) if file.is_file() else {}
    found = [*_like_settings(in_file, ENV_FILE, given), *_like_settings(environment, "the environment", given)]
    return list({one.name.upper(): one for one in reversed(found)}.values())[::-1]


def _like_settings(names: Iterable[str], where: str, others: frozenset[str]) -> Iterable[Misspelt]:
    settings = {name.upper() for name in Settings.model_fields}
    for name in names:
        if name.upper() in settings or name.upper() in others:
            continue
        if name.upper() in NO_LONGER_USED:
            yield Misspelt(name, where, "")
            continue
        if meant := _with_other_unit(name.upper(), settings):
            yield Misspelt(name, where, meant)
            continue
        for meant in difflib.get_close_matches(name.upper(), settings, n=1, cutoff=LIKENESS):
            yield Misspelt(name, where, meant)


def _with_other_unit(name: str, settings: Iterable[str]) -> str | None:
    """STEP_TIMEOUT and STEP_TIMEOUT_MS are meant for STEP_TIMEOUT_SECONDS."""
    stem = _UNIT.sub("", name)
    return next((each for each in settings if _UNIT.search(each) and _UNIT.sub("", each) == stem), None)


def log_misspelt(settings: Settings) -> None:
    """Log the misspelt names, once when a process starts."""
    for one in misspelt(settings):
        log.warning(str(one), name=one.name, meant=one.meant)
