"""How a rented machine and the platform know each other: a token and a certificate of the machine's own.

Both are derived from GPU_TOKEN_SECRET and the machine's id, so nothing of them is in the database, each process that
has the secret can make them, and also a machine whose row was lost can be taken over. Whoever rents the machine out can
read its token and key: they open nothing but this machine's model server. The certificate is the only one that is
trusted for it, so its validity is long and its names do not matter.

Ed25519 signs the same bytes with the same signature: the certificate is the same each time that it is made.
"""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

from backplane.errors import InvalidInput

_NOT_BEFORE, _NOT_AFTER = datetime(2020, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC)


SECRET_LEAST = 32
"""Characters."""


def check_secret(secret: str) -> None:
    """Raises InvalidInput when GPU_TOKEN_SECRET is too short to be one."""
    if len(secret) < SECRET_LEAST:
        raise InvalidInput(
            f"GPU_TOKEN_SECRET: it needs {SECRET_LEAST} characters or more that nobody can guess; set the same for the "
            "controller and the workers",
            field="GPU_TOKEN_SECRET",
        )


def machine_token(secret: str, machine_id: str) -> str:
    """What calls of the machine's model server carry as a bearer token: 43 characters of URL-safe Base64."""
    return base64.urlsafe_b64encode(_derived(secret, "token", machine_id)).decode("ascii").rstrip("=")


def machine_certificate(secret: str, machine_id: str) -> tuple[str, str]:
    """The certificate and its private key, as PEM."""
    # 0.05 s of CPU, which only those pay who have machines.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - in the 0.05 s

    key = Ed25519PrivateKey.from_private_bytes(_derived(secret, "key", machine_id))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"gpu-{machine_id}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(_derived(secret, "serial", machine_id)[:16], "big") | 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem).decode("ascii"), private.decode("ascii")


def _derived(secret: str, purpose: str, machine_id: str) -> bytes:
    return hmac.new(secret.encode(), f"gpu-machine/{purpose}/{machine_id}".encode(), hashlib.sha256).digest()
