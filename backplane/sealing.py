"""Seals users' secrets for the database, by SECRETS_KEY.

Fernet (AES-128-CBC with HMAC-SHA256, random each time). Whose secret it is and its name are sealed with it, so that a
row which somebody moves in the database opens for nobody. Several keys, separated by commas, are for changing them:
the first seals, all open; a secret is sealed anew when it is set anew.

The library takes 7 MB, so it is loaded where there is a key, or one is made.
"""

import json

from backplane.errors import Conflict, InvalidInput


class SecretsNotKept(Conflict):
    """There is no key to seal secrets with, or not the one that this secret was sealed with."""

    code = "secrets_not_kept"


def no_key() -> SecretsNotKept:
    return SecretsNotKept(
        "the platform keeps no secrets, because it has no key to seal them with: set the same SECRETS_KEY "
        "for the API and the workers"
    )


def new_key() -> str:
    from cryptography.fernet import Fernet  # noqa: PLC0415 - 0.01 s of CPU and 7 MB

    return Fernet.generate_key().decode("ascii")


class Seal:
    """`keys`: SECRETS_KEY. Raises InvalidInput when it is no key; the message does not contain it."""

    def __init__(self, keys: str) -> None:
        from cryptography.fernet import Fernet, InvalidToken, MultiFernet  # noqa: PLC0415 - 0.01 s of CPU and 7 MB

        self._invalid_token = InvalidToken
        try:
            self._fernet = MultiFernet([Fernet(key.strip()) for key in keys.split(",") if key.strip()])
        except ValueError:
            raise InvalidInput(
                "SECRETS_KEY is no key: set it to 32 bytes in URL-safe Base64 (the new one first and a comma between "
                "them, when you change it)",
                field="SECRETS_KEY",
            ) from None

    @classmethod
    def of(cls, keys: str) -> "Seal | None":
        """None when there is no key."""
        return cls(keys) if keys.strip() else None

    def seal(self, value: str, *, user_id: str, name: str) -> str:
        return self._fernet.encrypt(json.dumps([user_id, name, value]).encode("ascii")).decode("ascii")

    def open(self, sealed: str, *, user_id: str, name: str) -> str:
        """The value. Raises SecretsNotKept when no key opens it, or when it was sealed for another user or name."""
        try:
            owner, named, value = json.loads(self._fernet.decrypt(sealed))
        except self._invalid_token:
            owner, named, value = None, None, ""
        if (owner, named) != (user_id, name):
            raise SecretsNotKept(
                f"the secret {name} was sealed with a key that SECRETS_KEY has no more: set the secret anew, or put "
                "that key back, behind a comma"
            )
        return str(value)

    def __repr__(self) -> str:
        return "Seal(…)"
