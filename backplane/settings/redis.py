"""What reaches Redis: every process but `agentctl`'s clients of the API reads it."""

import ipaddress
from urllib.parse import urlsplit

from pydantic import Field, SecretStr


class RedisSettings:
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis: redis://…, unix://…, redis+sentinel://host,host/service, redis+cluster://host,host; "
        "rediss… is with TLS.",
    )
    redis_host: str = Field("", description="Instead of REDIS_URL: host of Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Its port, with REDIS_HOST.")
    redis_db: int = Field(0, ge=0, description="Its database, with REDIS_HOST.")
    redis_username: str = Field("", description="ACL user of Redis; goes before the one in the URL.")
    redis_password: SecretStr = Field(SecretStr(""), description="Password of Redis; goes before the one in the URL.")
    redis_sentinel_username: str = Field("", description="ACL user of the sentinels themselves.")
    redis_sentinel_password: SecretStr = Field(SecretStr(""), description="Password of the sentinels themselves.")
    redis_tls_ca_file: str = Field(
        "", description="PEM file: who signs the certificate; empty: whom the system trusts."
    )
    redis_tls_cert_file: str = Field("", description="PEM file: own certificate, where Redis asks for one.")
    redis_tls_key_file: str = Field("", description="PEM file: the key of REDIS_TLS_CERT_FILE.")
    redis_key_prefix: str = Field(
        "", max_length=100, description="Before every key and channel; a cluster needs a hash tag in it: {agents}:"
    )
    upstash_redis_rest_url: SecretStr = Field(
        SecretStr(""),
        description="Of the API alone, instead of REDIS_URL: Redis's REST API, where no connection can be kept. "
        "https://…, without login and query.",
    )
    upstash_redis_rest_token: SecretStr = Field(
        SecretStr(""), description="The token of that REST API; it has to be one that may write."
    )
    upstash_redis_rest_plain_http: bool = Field(
        False,
        description="Whether its URL may be http:// to another machine, so that the token can be read on the way.",
    )
    jobs_redis_url: SecretStr = Field(
        SecretStr(""),
        description="The single Redis server, or sentinels, of bulk actions and exports, with its login. "
        "REDIS_URL when left empty; RQ, which carries them out, cannot use a cluster.",
    )

    def check_rest(self) -> None:
        """Raises ValueError where what is set of the REST API does not fit together. The message holds no value."""
        url, token = self.upstash_redis_rest_url.get_secret_value(), self.upstash_redis_rest_token.get_secret_value()
        if not url and not token:
            return
        if not (url and token):
            raise ValueError("UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN go together: set both, or neither")
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError("UPSTASH_REDIS_REST_TOKEN has a character that no token has; copy it once more")
        try:
            parts = urlsplit(url)
            is_address = bool(parts.hostname) and parts.port != 0 and not (set(url) & set(" \t\r\n\\"))
        except ValueError:
            is_address = False
        if not is_address or parts.scheme not in ("http", "https"):
            raise ValueError("UPSTASH_REDIS_REST_URL is no address of a REST API; set https://host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "UPSTASH_REDIS_REST_URL must have no login, query or fragment; the token goes into "
                "UPSTASH_REDIS_REST_TOKEN"
            )
        if parts.scheme == "http" and not (self.upstash_redis_rest_plain_http or _is_loopback(parts.hostname or "")):
            raise ValueError(
                "UPSTASH_REDIS_REST_URL is http:// to another machine, and the token could be read on the way; set "
                "https://, or UPSTASH_REDIS_REST_PLAIN_HTTP=true where the network is trusted"
            )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
