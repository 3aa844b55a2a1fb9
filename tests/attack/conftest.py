"""What attacks need: the API as a running server, with people who use and misuse it, real workers, scripted models, and
a server outside that remembers what it was asked. The fixtures are those of the folders in `tests/integration`."""

from tests.integration.agent.conftest import models, start_with_models
from tests.integration.api.conftest import api, person, settings_with, start_api, start_worker
from tests.integration.tools.conftest import site
from tests.integration.worker.conftest import platform, start_platform, start_process

__all__ = [
    "api",
    "models",
    "person",
    "platform",
    "settings_with",
    "site",
    "start_api",
    "start_platform",
    "start_process",
    "start_with_models",
    "start_worker",
]
