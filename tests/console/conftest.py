"""The console as the real API serves it."""

from tests.integration.api.conftest import api, person, settings_with, start_api, start_worker

__all__ = ["api", "person", "settings_with", "start_api", "start_worker"]
