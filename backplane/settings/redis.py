"""What reaches Redis: every process but `agentctl`'s clients of the API reads it."""

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
    jobs_redis_url: SecretStr = Field(
        SecretStr(""),
        description="The single Redis server, or sentinels, of bulk actions and exports, with its login. "
        "REDIS_URL when left empty; RQ, which carries them out, cannot use a cluster.",
    )
