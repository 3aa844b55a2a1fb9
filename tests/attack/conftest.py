"""What attacks need: the API as a running server, with people who use and misuse it, and real workers. The fixtures are
those of `tests/integration/api`, and for the platform without its API those of `tests/integration/worker`."""

from tests.integration.api.conftest import api, person, settings_with, start_api, start_worker
from tests.integration.worker.conftest import start_platform, start_process

__all__ = ["api", "person", "settings_with", "start_api", "start_platform", "start_process", "start_worker"]
