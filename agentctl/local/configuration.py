"""The settings as agentctl meets them: loaded with an error that can be read, shown without a secret. Names that look
like misspelt settings are noted on standard error."""

import re
from typing import Any

from pydantic import SecretStr

from agentctl.exit_codes import CommandError, ExitCode
from agentctl.terminal.output import Output
from backplane.configuration import misspelt, read_settings
from backplane.errors import InvalidInput
from backplane.process import log as process_log
from backplane.settings import Settings

_MASK = "***"
_URL_PASSWORD = re.compile(r"(://[^:@/?]*:)[^\s]*@")
_QUERY_PASSWORD = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment and `.env`. Raises CommandError, which holds no value: it may be a secret."""
    try:
        settings = read_settings(**overrides)
    except InvalidInput as error:
        raise CommandError(ExitCode.USAGE, error.message) from None
    if not overrides:
        for one in misspelt(settings):
            Output().note(str(one), "yellow")
        # What the platform's own code logs goes to standard error, as notes do.
        process_log.configure(format="console", level=settings.log_level, process="agentctl")
    return settings


def masked(value: Any) -> str:
    """A setting's value for people: URLs without their passwords, other secrets not at all."""
    if not isinstance(value, SecretStr):
        return str(value)
    text = value.get_secret_value()
    if "://" not in text:
        return _MASK if text else ""
    return _QUERY_PASSWORD.sub(rf"\1{_MASK}", _URL_PASSWORD.sub(rf"\1{_MASK}@", text))
