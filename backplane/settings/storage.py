"""Where data is kept: the database, the workspaces, the artifacts of agents; and how much a user may keep."""

from pathlib import Path

from pydantic import Field, SecretStr

from backplane.domain.sizes import GIB, MIB


class StorageSettings:
    database_url: SecretStr = Field(
        SecretStr("sqlite:///.data/agent.db"), description="The truth: postgresql://… or sqlite:///path (one machine)."
    )
    database_pool_size: int = Field(
        5, ge=1, le=100, description="Database connections a process keeps: so many, and as many for single statements."
    )
    database_pool_overflow: int = Field(
        0, ge=0, le=100, description="Further database connections under load; each is opened anew, which costs time."
    )
    database_prepared_statements: bool | None = Field(
        None,
        description="Let PostgreSQL keep frequent statements prepared; unset: yes, but not behind a proxy (PgBouncer).",
    )
    pgbouncer_url: SecretStr = Field(
        SecretStr(""),
        description="PgBouncer before the database: postgresql://…. Workers and pool processes connect there in place "
        "of DATABASE_URL; empty: they connect to the database itself.",
    )
    workspace_dir: Path = Field(
        Path(".data/workspaces"), description="Folder of the workspaces when S3_BUCKET is empty (one machine)."
    )
    s3_bucket: str = Field("", description="Bucket of the workspaces; empty: WORKSPACE_DIR is used.")
    s3_endpoint: str = Field("", description="URL of the S3-compatible server; empty: the region's own.")
    s3_region: str = Field("us-east-1", description="Region that requests are signed for.")
    s3_access_key: SecretStr = Field(SecretStr(""), description="Access key id; empty: from the machine's own role.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret access key.")
    s3_virtual_host: bool = Field(False, description="Address the bucket as a host name, not as the path's first part.")
    s3_create_bucket: bool = Field(False, description="Make the bucket at start-up when it is missing.")
    artifacts_dir: str = Field(
        ".data/artifacts",
        description="Folder of the agents' artifacts, a Git repository each, shared by the API and all workers; "
        "empty: no artifacts.",
    )
    artifacts_max_bytes: int = Field(500_000, ge=1, description="Quota of an agent's artifacts, in bytes.")
    artifacts_history_max_bytes: int = Field(
        20_000_000, ge=1, description="Quota of an agent's artifacts with all their history, in bytes on disk."
    )
    workspace_max_bytes: int = Field(4 * GIB, ge=1, description="Quota of a run's workspace, in bytes.")
    workspace_max_files: int = Field(100_000, ge=1, description="Quota of a run's workspace, in files.")
    workspace_versions_max_bytes: int = Field(
        4 * GIB, ge=0, description="Of a run's overwritten files, what is kept so that it can be forked; 0: nothing."
    )
    user_max_runs: int = Field(100_000, ge=0, description="Runs of one user that are kept; 0: any number.")
    user_max_events: int = Field(
        20_000_000, ge=0, description="Events of one user's runs that are kept; 0: any number."
    )
    user_max_bytes: int = Field(
        100 * GIB, ge=0, description="Files of one user's runs that are kept, in bytes; 0: any number."
    )
    user_max_bus_events: int = Field(
        1_000_000, ge=0, description="Events on the bus of one user that are kept; 0: any number."
    )
    user_max_bus_bytes: int = Field(1 * GIB, ge=0, description="The same in bytes; 0: any number.")
    transfers_user_max: int = Field(
        16, ge=1, description="Files of one user that an API process sends and takes at once."
    )
    transfers_user_bytes_per_second: int = Field(
        32 * MIB, ge=0, description="Bytes of them in a second, all of one user together; 0: as fast as may be."
    )
