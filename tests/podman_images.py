"""A small image for Podman, made of this machine's own busybox: no registry is asked."""

import io
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator

import pytest


def podman(*words: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(["podman", *words], input=stdin, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def small_limits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Podman asks for more open files than it may have on some machines."""
    limits = tmp_path_factory.mktemp("podman") / "containers.conf"
    limits.write_text('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(limits))
        yield


@pytest.fixture(scope="module")
def image(small_limits: None) -> Iterator[str]:
    """Busybox and nothing else, made of this machine's own."""
    busybox = shutil.which("busybox")
    if shutil.which("podman") is None or busybox is None:
        pytest.skip("needs podman and busybox-static")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "mkdir", "echo", "httpd", "sleep"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    name = f"localhost/agent-service-test:{uuid.uuid4().hex[:8]}"
    podman("import", "-", name, stdin=packed.getvalue())
    runs = subprocess.run(["podman", "run", "--rm", name, "/bin/echo", "it runs"], capture_output=True, timeout=120)
    if runs.returncode or b"it runs" not in runs.stdout:
        subprocess.run(["podman", "rmi", "--force", name], capture_output=True)
        pytest.skip(f"podman runs no container here: {runs.stderr.decode()[-300:]}")
    yield name
    subprocess.run(["podman", "rmi", "--force", name], capture_output=True)
