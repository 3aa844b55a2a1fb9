"""What attacks need: the API as a running server, with people who use and misuse it, and real workers. The fixtures are
those of `tests/integration/api`."""

from tests.integration.api.conftest import api, person, settings_with, start_api, start_worker

__all__ = ["api", "person", "settings_with", "start_api", "start_worker"]
