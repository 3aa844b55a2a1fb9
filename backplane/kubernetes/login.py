"""Where a cluster's API server is, and as whom this process speaks with it: a pod's service account, or a kubeconfig.

The official client knows this too, for 1.1 s of CPU, 48 MB of memory and 126 MB of files, and nothing else here needs
it, so this module takes its place. Of a kubeconfig it understands what `kubectl` does: several files, tokens, files of
tokens, client certificates, passwords, programs that print credentials, impersonation, proxies. It does not understand
`auth-provider`, which `kubectl` has dropped in favour of such programs.

No message made here has a credential in it.
"""

import asyncio
import base64
import contextlib
import json
import os
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from backplane.errors import Unavailable

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVICE_HOST, SERVICE_PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
TOKEN_FILE_SECONDS = 60.0
"""A token that comes from a file is read again so often: Kubernetes replaces it well before it runs out."""
EARLY_SECONDS = 10.0
"""Credentials that run out are renewed so long before their time."""
PROGRAM_SECONDS = 60.0
"""How long a program that prints credentials may take."""
COMPLAINT_CHARS = 300

GET_CREDENTIALS = (
    "run this process in the cluster with a service account, or let KUBECONFIG name a file with credentials "
    "(else ~/.kube/config), or set SANDBOX=local"
)

Headers = tuple[tuple[str, str], ...]
Section = Mapping[str, Any]


class LoginError(Exception):
    """Why there are no credentials, in words that have no secret in them."""


@dataclass(frozen=True, slots=True)
class Server:
    """The address of an API server. `tls` is None for plain HTTP; `tls_name` is the name in its certificate where that
    is not the URL's; `proxy` is the URL of an HTTP proxy."""

    url: str
    tls: ssl.SSLContext | None = None
    tls_name: str | None = None
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What each request carries, until `expires` (seconds since the epoch). `certificate`: the chain and the key, both
    as PEM, where a program gave those."""

    headers: Headers = ()
    expires: float = float("inf")
    certificate: tuple[str, str] | None = None


class Login:
    """Made by `open_login`: one server, and credentials that are renewed when their time is over. `part` is what
    Unavailable names as the part that does not answer."""

    def __init__(self, server: Server, read: Callable[[], Awaitable[Credentials]], part: str) -> None:
        self.server = server
        self._read = read
        self._part = part
        self._credentials = Credentials(expires=0)
        self._renewing = asyncio.Lock()

    async def credentials(self) -> Credentials:
        """Those for a request that is sent now. Raises Unavailable when they have to be read anew, and cannot be."""
        if time.time() >= self._credentials.expires:
            await self.renew(self._credentials)
        return self._credentials

    async def renew(self, refused: Credentials) -> None:
        """Read the credentials anew, because the server does not know these, or their time is over. Does nothing when
        another request has had them replaced meanwhile. Raises Unavailable."""
        async with self._renewing:
            if refused is not self._credentials:
                return
            with _explained(self._part):
                credentials = await self._read()
                if credentials.certificate and self.server.tls:
                    _use_certificate(self.server.tls, *credentials.certificate)
            self._credentials = credentials


async def open_login(kubeconfig: str = "", *, part: str = "kubernetes") -> Login:
    """With the credentials of the file `kubeconfig` where it is named, else of the pod that this runs in, else of
    KUBECONFIG or ~/.kube/config. Raises Unavailable when there are none; asks the server nothing."""
    with _explained(part):
        files = kubeconfig or _own_files()
        login = _login_of_files(files, part) if files else _login_of_pod(part)
    await login.credentials()
    return login


def own_namespace() -> str:
    """The namespace of this pod; empty outside a cluster, and in a pod without a service account's token."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text("utf-8").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _explained(part: str) -> Iterator[None]:
    try:
        yield
    except (LoginError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise Unavailable(
            f"there are no credentials for a Kubernetes cluster ({_words(error)}): {GET_CREDENTIALS}", part=part
        ) from None


def _words(error: Exception) -> str:
    if isinstance(error, LoginError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return "its certificates cannot be used"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    # Whatever else such an error says may be a piece of the file.
    return f"the kubeconfig cannot be read: {type(error).__name__}"


# --- in a pod ---


def _own_files() -> str:
    """The files with this user's credentials; none in a pod, which has its own."""
    if os.environ.get(SERVICE_HOST) and os.access(SERVICE_ACCOUNT / "token", os.R_OK):
        return ""
    return os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")


def _login_of_pod(part: str) -> Login:
    host, port = os.environ[SERVICE_HOST], os.environ.get(SERVICE_PORT, "443")
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    async def read() -> Credentials:
        return _from_file(SERVICE_ACCOUNT / "token")

    return Login(Server(url, _tls((SERVICE_ACCOUNT / "ca.crt").read_text("utf-8"))), read, part)


def _from_file(file: Path) -> Credentials:
    if not (token := file.read_text("utf-8").strip()):
        raise LoginError(f"{file} is empty")
    return _bearer(token, time.time() + TOKEN_FILE_SECONDS)


def _bearer(token: str, expires: float = float("inf")) -> Credentials:
    return Credentials((("Authorization", f"Bearer {token}"),), expires)


# --- by a kubeconfig ---


@dataclass(frozen=True, slots=True)
class _Context:
    """The parts of the kubeconfig that are in use, each with the folder that its relative paths start from."""

    cluster: Section
    cluster_folder: Path
    user: Section
    user_folder: Path


def _login_of_files(files: str, part: str) -> Login:
    context = _read_context(files)
    cluster = context.cluster
    url = str(cluster.get("server") or "")
    if not url.startswith(("https://", "http://")):
        raise LoginError(f"the kubeconfig {files} names no server")
    tls = None
    if url.startswith("https://"):
        authorities = _text(cluster, "certificate-authority", context.cluster_folder)
        tls = _tls(authorities, checks=not cluster.get("insecure-skip-tls-verify"))
        certificate = _text(context.user, "client-certificate", context.user_folder)
        key = _text(context.user, "client-key", context.user_folder)
        if certificate and key:
            _use_certificate(tls, certificate, key)

    async def read() -> Credentials:
        again = _read_context(files)
        return await _credentials(again.user, again.user_folder)

    server = Server(url.rstrip("/"), tls, cluster.get("tls-server-name") or None, cluster.get("proxy-url") or None)
    return Login(server, read, part)


def _read_context(files: str) -> _Context:
    """Where several files have an entry of the same name, the first one counts."""
    named: dict[tuple[str, str], tuple[Section, Path]] = {}
    current, found = "", False
    for file in filter(None, files.split(os.pathsep)):
        path = Path(file).expanduser()
        if not path.exists():
            continue
        found = True
        content = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise LoginError(f"{file} is no kubeconfig")
        current = current or str(content.get("current-context") or "")
        for kind in ("context", "cluster", "user"):
            for entry in content.get(f"{kind}s") or ():
                named.setdefault((kind, str(entry["name"])), (entry.get(kind) or {}, path.parent.absolute()))
    if not found:
        raise LoginError(f"there is no file {files}")

    def part(kind: str, name: str) -> tuple[Section, Path]:
        if (kind, name) not in named:
            raise LoginError(f"the kubeconfig {files} has no {kind} {name!r}")
        return named[kind, name]

    context, _ = part("context", current)
    cluster, cluster_folder = part("cluster", str(context.get("cluster") or ""))
    user, user_folder = part("user", str(context["user"])) if context.get("user") else ({}, cluster_folder)
    return _Context(cluster, cluster_folder, user, user_folder)


async def _credentials(user: Section, folder: Path) -> Credentials:
    credentials = await _own_credentials(user, folder)
    asks_as = [("Impersonate-User", str(user["as"]))] if user.get("as") else []
    asks_as += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or ()]
    return Credentials((*credentials.headers, *asks_as), credentials.expires, credentials.certificate)


async def _own_credentials(user: Section, folder: Path) -> Credentials:
    if user.get("tokenFile"):
        return _from_file(folder / str(user["tokenFile"]))
    if user.get("token"):
        return _bearer(str(user["token"]).strip())
    if user.get("exec"):
        return await _from_program(user["exec"], folder)
    if user.get("username") and user.get("password"):
        both = base64.b64encode(f"{user['username']}:{user['password']}".encode()).decode()
        return Credentials((("Authorization", f"Basic {both}"),))
    if user.get("auth-provider"):
        raise LoginError(
            "`auth-provider` is not supported: name a program that prints credentials (`exec`), or a token"
        )
    return Credentials()


async def _from_program(described: Section, folder: Path) -> Credentials:
    """What a program prints as an ExecCredential (client.authentication.k8s.io). It runs as `kubectl` would run it,
    with this process's environment and what the kubeconfig adds."""
    command, version = str(described["command"]), str(described["apiVersion"])
    if os.sep in command:
        command = str(folder / command)
    environment = os.environ | {str(each["name"]): str(each["value"]) for each in described.get("env") or ()}
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    process = await asyncio.create_subprocess_exec(
        command,
        *(str(argument) for argument in described.get("args") or ()),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PROGRAM_SECONDS):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise LoginError(f"{command} printed no credentials within {PROGRAM_SECONDS:g} seconds") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = " ".join(complaint.decode(errors="replace").split())[-COMPLAINT_CHARS:]
        raise LoginError(f"{command} ended with code {process.returncode}: {words}")
    return _printed(command, output)


def _printed(command: str, output: bytes) -> Credentials:
    try:
        status = json.loads(output)["status"]
        token, certificate, key = (status.get(name) for name in ("token", "clientCertificateData", "clientKeyData"))
        expires = float("inf")
        if status.get("expirationTimestamp"):
            expires = datetime.fromisoformat(status["expirationTimestamp"]).timestamp() - EARLY_SECONDS
    except (ValueError, LookupError, AttributeError, TypeError):
        raise LoginError(f"{command} printed no ExecCredential") from None
    if not token and not (certificate and key):
        raise LoginError(f"{command} printed neither a token nor a certificate with its key")
    headers = _bearer(str(token)).headers if token else ()
    # Never in the past: credentials are used once at least, and the server says what it thinks of them.
    expires = max(expires, time.time() + 1.0)
    return Credentials(headers, expires, (str(certificate), str(key)) if certificate and key else None)


def _text(section: Section, name: str, folder: Path) -> str:
    """The PEM that stands in the section, or in the file that it names; empty where there is none."""
    if data := section.get(f"{name}-data"):
        return base64.b64decode(data).decode()
    if file := section.get(name):
        return (folder / str(file)).read_text("utf-8")
    return ""


def _tls(authorities: str, *, checks: bool = True) -> ssl.SSLContext:
    """`authorities` is PEM; empty for those that the system trusts."""
    context = ssl.create_default_context(cadata=authorities or None)
    # Python 3.13 wants certificates to have extensions that authorities of older clusters have not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not checks:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _use_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Python reads the two from a file only. This one nobody else may read, and it is gone at once."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"{certificate}\n{key}\n")
        file.flush()
        context.load_cert_chain(file.name)
