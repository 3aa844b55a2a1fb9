"""The settings as agentctl meets them: loaded with an error that can be read, shown without a secret."""

import re
from typing import Any

from pydantic import SecretStr, ValidationError

from agentctl.exit_codes import CommandError, ExitCode
from backplane.process_log import complaint
from backplane.settings import Settings

_MASK = "***"
_URL_PASSWORD = re.compile(r"(://[^:@/?]*:)[^\s]*@")
_QUERY_PASSWORD = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment and `.env`. Raises CommandError, which holds no value: it may be a secret."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise CommandError(ExitCode.USAGE, complaint(error)) from None


def masked(value: Any) -> str:
    """A setting's value for people: URLs without their passwords, other secrets not at all."""
    if not isinstance(value, SecretStr):
        return str(value)
    text = value.get_secret_value()
    if "://" not in text:
        return _MASK if text else ""
    return _QUERY_PASSWORD.sub(rf"\1{_MASK}", _URL_PASSWORD.sub(rf"\1{_MASK}@", text))
