"""What a worker and a controller load that use nothing special."""

import subprocess
import sys

OF_SOME_SETTINGS = {
    *("openai", "anthropic", "httpx2", "mcp", "jsonschema", "cryptography.fernet", "qdrant_client", "numpy", "pygit2"),
    *("kubernetes", "aiohttp"),
}


def test_a_library_that_only_some_settings_need_is_not_loaded_before() -> None:
    program = f"import sys, worker.service, controller.service; print(sorted({OF_SOME_SETTINGS} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.stdout.strip(), ended.returncode) == ("[]", 0), ended.stderr
