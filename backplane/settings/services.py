"""The services' host: who starts containers of services there, and how."""

from pydantic import Field


class ServiceSettings:
    services_container_engine: str = Field(
        "",
        description="Program by which this controller runs containers of services: docker or podman, with options. Set "
        "it on the services' host alone; empty: services are only observed.",
    )
    services_bind: str = Field("127.0.0.1", min_length=1, description="Address on which their ports are published.")
    services_env_dir: str = Field(
        "", description="Folder of the services' host with NAME.env for each service that needs secrets."
    )
