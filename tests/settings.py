"""Settings of a test's own: what it says, and the defaults. Neither the environment nor a `.env` is read, which would
take 14 ms, a quarter of what a small test takes. `tests/unit/test_settings.py` is about how they are read."""

from typing import Any

from pydantic import BaseModel

from backplane.settings import Settings


def settings_of(**values: Any) -> Settings:
    """Raises pydantic's ValidationError, as `Settings` does, and TypeError for a name that is no setting."""
    if unknown := values.keys() - Settings.model_fields.keys():
        raise TypeError(f"no settings: {unknown}")
    settings = Settings.__new__(Settings)
    BaseModel.__init__(settings, **values)
    return settings
