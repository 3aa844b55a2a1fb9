"""As whom a process speaks with a cluster: what the files say, what a pod has, and when it is read again."""

import asyncio
import base64
import os
import ssl
import stat
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from backplane.errors import Unavailable
from backplane.kubernetes import login
from backplane.kubernetes.login import open_login

SECRET = "a-secret-that-nobody-may-see"
_AUTHORITY = trustme.CA()
_ISSUED = _AUTHORITY.issue_cert("test.invalid")
AUTHORITY = _AUTHORITY.cert_pem.bytes().decode()
CERTIFICATE = _ISSUED.cert_chain_pems[0].bytes().decode()
KEY = _ISSUED.private_key_pem.bytes().decode()
Kubeconfig = Callable[..., str]


@pytest.fixture(autouse=True)
def outside_of_pods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", login.SERVICE_HOST, login.SERVICE_PORT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Kubeconfig:
    """Writes a file with one context and answers its path."""

    def write(user: Any = None, cluster: Any = None, name: str = "config", context: str = "c") -> str:
        content: dict[str, Any] = {"current-context": context}
        content["contexts"] = [{"name": "c", "context": {"cluster": "c"} | ({"user": "u"} if user else {})}]
        content["clusters"] = [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443/"} | (cluster or {})}]
        content["users"] = [{"name": "u", "user": user}] if user else []
        file = tmp_path / name
        file.write_text(yaml.safe_dump(content))
        return str(file)

    return write


def program(tmp_path: Path, text: str) -> str:
    file = tmp_path / "get-credentials"
    file.write_text(f"#!{sys.executable}\nimport json, os, sys\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file.name


def by_program(name: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": f"./{name}", **more}}


async def headers_of(file: str) -> dict[str, str]:
    return dict((await (await open_login(file)).credentials()).headers)


BASIC = "Basic " + base64.b64encode(b"ann:pass").decode()


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": "t"}, {"Authorization": "Bearer t"}),
        ({"tokenFile": "token"}, {"Authorization": "Bearer of-the-file"}),
        ({"tokenFile": "token", "token": "t"}, {"Authorization": "Bearer of-the-file"}),
        ({"username": "ann", "password": "pass"}, {"Authorization": BASIC}),
        ({"token": "t", "as": "bob"}, {"Authorization": "Bearer t", "Impersonate-User": "bob"}),
        ({"token": "t", "as": "bob", "as-groups": ["g"]},
         {"Authorization": "Bearer t", "Impersonate-User": "bob", "Impersonate-Group": "g"}),
        (None, {}),
    ],
)  # fmt: skip
async def test_a_users_entry_becomes_the_headers_of_each_request(
    kubeconfig: Kubeconfig, tmp_path: Path, user: Any, expected: dict[str, str]
) -> None:
    (tmp_path / "token").write_text("of-the-file\n")
    assert await headers_of(kubeconfig(user)) == expected


async def test_a_clusters_entry_becomes_the_server(kubeconfig: Kubeconfig) -> None:
    cluster = {"tls-server-name": "api", "proxy-url": "http://127.0.0.1:3128"}
    server = (await open_login(kubeconfig(cluster=cluster))).server
    assert (server.url, server.tls_name, server.proxy) == ("https://127.0.0.1:6443", "api", "http://127.0.0.1:3128")
    assert server.tls is not None
    assert server.tls.verify_mode is ssl.CERT_REQUIRED


async def test_a_cluster_whose_certificate_is_not_to_be_checked_is_not_checked(kubeconfig: Kubeconfig) -> None:
    tls = (await open_login(kubeconfig(cluster={"insecure-skip-tls-verify": True}))).server.tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize("in_files", [False, True])
async def test_certificates_are_read_from_the_entry_or_from_files_beside_it(
    kubeconfig: Kubeconfig, tmp_path: Path, in_files: bool
) -> None:
    def entry(name: str, text: str) -> dict[str, str]:
        if not in_files:
            return {f"{name}-data": base64.b64encode(text.encode()).decode()}
        (tmp_path / f"{name}.pem").write_text(text)
        return {name: f"{name}.pem"}

    user = entry("client-certificate", CERTIFICATE) | entry("client-key", KEY)
    tls = (await open_login(kubeconfig(user, entry("certificate-authority", AUTHORITY)))).server.tls
    assert tls is not None
    assert len(tls.get_ca_certs()) == 1


async def test_of_several_files_the_first_one_with_an_entry_counts(kubeconfig: Kubeconfig) -> None:
    first = kubeconfig({"token": "first"}, name="first", context="")
    second = kubeconfig({"token": "second"}, name="second")
    assert await headers_of(os.pathsep.join([first, "/nowhere/at-all", second])) == {"Authorization": "Bearer first"}


async def test_without_a_name_the_file_of_the_variable_counts(
    kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig({"token": "t"}))
    assert await headers_of("") == {"Authorization": "Bearer t"}


# --- programs that print credentials ---


async def test_a_programs_token_is_used_until_its_time_is_over(kubeconfig: Kubeconfig, tmp_path: Path) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    text = f"""
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
assert info["kind"] == "ExecCredential" and sys.argv[1:] == ["--cluster", "c"], sys.argv
with open({str(tmp_path / "calls")!r}, "a") as calls:
    calls.write("x")
print(json.dumps({{"status": {{"token": os.environ["MINE"], "expirationTimestamp": {later!r}}}}}))
"""
    more = {"args": ["--cluster", "c"], "env": [{"name": "MINE", "value": "of-the-program"}]}
    opened = await open_login(kubeconfig(by_program(program(tmp_path, text), **more)))
    credentials = await opened.credentials()
    assert credentials.headers == (("Authorization", "Bearer of-the-program"),)
    assert await opened.credentials() is credentials
    await asyncio.gather(opened.renew(credentials), opened.renew(credentials))
    assert (tmp_path / "calls").read_text() == "xx", "two that are refused at once ask the program once"


async def test_credentials_that_have_run_out_are_asked_for_again(
    kubeconfig: Kubeconfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    text = f'print(json.dumps({{"status": {{"token": str(os.getpid()), "expirationTimestamp": {soon!r}}}}}))'
    opened = await open_login(kubeconfig(by_program(program(tmp_path, text))))
    first = await opened.credentials()
    now = time.time() + 3600
    monkeypatch.setattr("time.time", lambda: now)
    assert (await opened.credentials()).headers != first.headers


async def test_a_programs_certificate_is_used(kubeconfig: Kubeconfig, tmp_path: Path) -> None:
    status = {"clientCertificateData": CERTIFICATE, "clientKeyData": KEY}
    text = f"print(json.dumps({ {'status': status}!r}))"
    credentials = await (await open_login(kubeconfig(by_program(program(tmp_path, text))))).credentials()
    assert credentials.certificate == (CERTIFICATE, KEY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sys.exit('no session; log in first')", "ended with code 1: no session; log in first"),
        ("print('hello')", "printed no ExecCredential"),
        ("print(json.dumps({'status': {}}))", "neither a token nor a certificate"),
        ("import time; time.sleep(60)", "printed no credentials within"),
    ],
)
async def test_a_program_that_gives_no_credentials_is_named_with_its_words(
    kubeconfig: Kubeconfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(login, "PROGRAM_SECONDS", 1.0)
    with pytest.raises(Unavailable, match=message):
        await open_login(kubeconfig(by_program(program(tmp_path, text))))


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        ({"auth-provider": {"name": "gcp"}}, None, "auth-provider"),
        ({"tokenFile": "none"}, None, "none: No such file"),
        ({"client-certificate-data": "AAAA", "client-key-data": SECRET}, None, "cannot be"),
        (by_program("none"), None, "No such file"),
        (None, {"server": ""}, "names no server"),
        (None, {"certificate-authority-data": base64.b64encode(b"-").decode()}, "certificates cannot be used"),
    ],
)
async def test_what_cannot_be_used_is_named_and_no_secret_shown(
    kubeconfig: Kubeconfig, user: Any, cluster: Any, message: str
) -> None:
    with pytest.raises(Unavailable, match=message) as raised:
        await open_login(kubeconfig(user, cluster))
    assert raised.value.part == "kubernetes"
    assert SECRET not in raised.value.message
    assert "KUBECONFIG" in raised.value.message


@pytest.mark.parametrize("content", [f"token: {SECRET}: [", "- a list", "contexts: 3", "current-context: gone"])
async def test_a_file_that_is_no_kubeconfig_is_said_to_be_none_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "config").write_text(content)
    with pytest.raises(Unavailable, match="kubeconfig") as raised:
        await open_login(str(tmp_path / "config"))
    assert SECRET not in raised.value.message


async def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(Unavailable, match="there is no file /nowhere/config"):
        await open_login("/nowhere/config")


# --- in a pod ---


@pytest.fixture
def service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("of-the-pod\n")
    (folder / "ca.crt").write_text(AUTHORITY)
    (folder / "namespace").write_text("agents\n")
    monkeypatch.setattr(login, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv(login.SERVICE_HOST, "10.0.0.1")
    monkeypatch.setenv(login.SERVICE_PORT, "443")
    return folder


@pytest.mark.parametrize(("host", "url"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")])
async def test_a_pods_account_is_used_before_any_file(
    service_account: Path, kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig({"token": "t"}))
    monkeypatch.setenv(login.SERVICE_HOST, host)
    opened = await open_login()
    assert opened.server.url == url
    assert (await opened.credentials()).headers == (("Authorization", "Bearer of-the-pod"),)
    assert login.own_namespace() == "agents"


async def test_a_pods_token_is_read_again_after_a_while(service_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = await open_login()
    (service_account / "token").write_text("renewed")
    assert (await opened.credentials()).headers == (("Authorization", "Bearer of-the-pod"),)
    later = time.time() + login.TOKEN_FILE_SECONDS
    monkeypatch.setattr("time.time", lambda: later)
    assert (await opened.credentials()).headers == (("Authorization", "Bearer renewed"),)


async def test_an_empty_token_of_a_pod_is_unavailable(service_account: Path) -> None:
    (service_account / "token").write_text("")
    with pytest.raises(Unavailable, match="is empty"):
        await open_login()


def test_outside_of_a_pod_there_is_no_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(login, "SERVICE_ACCOUNT", tmp_path / "none")
    assert login.own_namespace() == ""
