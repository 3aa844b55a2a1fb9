"""What went wrong with an object store, in words for whoever set it up.

What answers at S3_ENDPOINT need not be an object store: it may be a web page (a login page, a proxy, another port), or
a store that sends clients elsewhere. So each error says what came back, and which setting to look at. Of what a server
says only the status, the region and the host of a redirect are shown: it may echo keys and signatures.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from backplane.errors import InvalidPath, NotFound, Unavailable

NO_BUCKET = "The bucket of the workspaces does not exist: create it, or set S3_CREATE_BUCKET=true and start again."
REFUSALS = frozenset({"400", "401", "403", "404", "405", "409", "411", "412", "413", "501", "505", "507"})
"""Statuses that last until somebody has mended something. What a server answers when it is busy, or has a fault of its
own (408, 425, 429, other 5xx), passes."""
A_PAGE = "a web page"
NO_ETAG = "an answer without the header ETag"
NO_XML = "an answer that is not S3's"
MAYBE_A_PAGE = "The answer is a web page, so perhaps S3_ENDPOINT leads to no object store."

_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_BODY = re.compile(r"body: Some\(\n\s*\"(.*)\",?\n")
_CODES_OF_KEYS = ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_MISSING_HEADER = re.compile(r"source: Missing(?:Etag|LastModified)\b|(?:ETag|Last-Modified) Header missing")


def is_page(content: bytes) -> bool:
    return _PAGE.match(content[:200]) is not None


@contextmanager
def answers_translated(path: str, *, missing: str | None = None) -> Iterator[None]:
    """Turns obstore's errors into the platform's. `missing`: what an object that is not there means, where that is no
    missing file."""
    try:
        yield
    except FileNotFoundError as error:
        body = _body(str(error))
        if is_page(body):
            raise no_store(f"404 with {A_PAGE}") from None
        if missing is None and b"<Code>NoSuchBucket</Code>" in body:
            missing = NO_BUCKET
        if missing is not None:
            raise Unavailable(missing, part="workspace", refuses=True) from None
        raise NotFound(f"There is no file {path!r} in the workspace.") from None
    except BaseError as error:
        lacks_rights = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        raise _of_answer(str(error), lacks_rights=lacks_rights) from None
    except ValueError:
        raise InvalidPath(
            f"The bucket has a name at {path!r} that no workspace can hold: rename it.", field="path"
        ) from None


def _of_answer(text: str, *, lacks_rights: bool) -> Unavailable:
    """What an error of obstore means, which has status and body nowhere but in its text."""
    reason = _reason(text)
    if is_page(_body(text)):
        return no_store(f"{reason} with {A_PAGE}" if reason.isdigit() else A_PAGE)
    if lacks_rights or reason in ("401", "403"):
        return _wrong_keys()
    if reason == "404":
        return Unavailable(NO_BUCKET, part="workspace", refuses=True)
    if reason == "507":
        return _no_room()
    if re.fullmatch(r"3\d\d", reason):
        return redirects(reason)
    if reason == NO_ETAG:
        return no_store(f"{NO_ETAG}, as {A_PAGE} has none")
    if reason == NO_XML:
        return no_store(f"{NO_XML}, such as {A_PAGE}")
    return unavailable(f"it answered {reason}" if reason.isdigit() else reason, refuses=reason in REFUSALS)


def of_start(error: ClientError | BotoCoreError | ValueError, region: str) -> Unavailable:
    """The same for boto3, whose errors have the headers of the answer. `region`: S3_REGION."""
    if not isinstance(error, ClientError):
        return unavailable(type(error).__name__)
    metadata = error.response.get("ResponseMetadata", {})
    headers = {name.lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
    status = metadata.get("HTTPStatusCode", 0)
    right_region = headers.get("x-amz-bucket-region", "")
    elsewhere = right_region not in ("", region)
    if 300 <= status < 400 or (status == 400 and elsewhere):
        return redirects(str(status), to=headers.get("location", ""), region=right_region if elsewhere else "")
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _CODES_OF_KEYS:
        return _wrong_keys(MAYBE_A_PAGE if answers_with_page(error) else "")
    if answers_with_page(error) and 400 <= status < 500:
        return no_store(f"{status} with {A_PAGE}")
    return unavailable(f"it answered {code}" if re.fullmatch(r"\w{1,40}", code) else "it refused")


def lacks_etag(error: BaseError) -> bool:
    return _reason(str(error)) == NO_ETAG


def answers_with_page(error: ClientError) -> bool:
    """By its header alone, as an answer to HEAD has no body; some stores have that header by default."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("content-type", "")).lower().startswith("text/html")


def no_store(answer: str) -> Unavailable:
    return Unavailable(
        f"What answers is no object store: it gave {answer}. Set S3_ENDPOINT to the store's own address (not that of "
        "its web console), and see that no proxy or login page stands between.",
        part="workspace",
        refuses=True,
    )


def lacks_etags() -> Unavailable:
    return Unavailable(
        "The object store keeps files, but gives answers without the header ETag, which distinguishes files: let "
        "the proxy or gateway before it pass that header, or set S3_ENDPOINT to the store itself.",
        part="workspace",
        refuses=True,
    )


def redirects(status: str, *, to: str = "", region: str = "") -> Unavailable:
    """`to`: the header Location. `region`: the one that the store names as the bucket's."""
    where = _origin(to)
    setting = f"S3_REGION={region}" if re.fullmatch(r"[a-z0-9-]{1,40}", region) else "S3_REGION to the bucket's region"
    return Unavailable(
        f"The object store does not answer here, but redirects ({status}{f' to {where}' if where else ''}). Set "
        f"{setting}, S3_ENDPOINT to the address (and http or https) that serves this bucket, and S3_VIRTUAL_HOST=true "
        "where the bucket belongs into the host name.",
        part="workspace",
        refuses=True,
    )


def unavailable(reason: str, *, refuses: bool = False) -> Unavailable:
    return Unavailable(
        f"The object store does not take part ({reason}): check S3_ENDPOINT and S3_REGION, and that the server runs.",
        part="workspace",
        refuses=refuses,
    )


def _wrong_keys(more: str = "") -> Unavailable:
    message = (
        "The object store refused the credentials: check S3_ACCESS_KEY and S3_SECRET_KEY, S3_REGION, that they "
        "may list, read, write and delete in S3_BUCKET, and that its quota is not used up."
    )
    return Unavailable(
        f"{message} {more}".strip(),
        part="workspace",
        refuses=True,
    )


def _no_room() -> Unavailable:
    return Unavailable(
        "The object store has no room left (507): free some in S3_BUCKET, or add disks or quota there.",
        part="workspace",
        refuses=True,
    )


def _origin(url: str) -> str:
    """Scheme and host alone; empty for what is no URL."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if parts.scheme and re.fullmatch(r"[\w.:\[\]-]{1,255}", host) else ""


def _reason(text: str) -> str:
    """The status in an error of obstore; else what happened."""
    if status := re.search(r"status code: (\d{3})", text):
        return status[1]
    if "inner: BareRedirect" in text:
        return "301"
    if _MISSING_HEADER.search(text):
        return NO_ETAG
    if re.search(r"source: Invalid\w+Response \{", text):
        return NO_XML
    return "no answer in time" if re.search(r"timed ?out", text, re.IGNORECASE) else "the connection failed"


def _body(text: str) -> bytes:
    """What the server said. Looked for behind "Debug source:" alone, where names of files are quoted."""
    found = _BODY.search(text.rpartition("Debug source:")[2])
    return found[1].encode() if found else b""
