"""GPU machines: who rents them out, how many there are, and what they may cost. Without GPU_PROVIDER there are none."""

from typing import Any, Literal

from pydantic import Field, SecretStr


class GpuSettings:
    gpu_provider: Literal["", "vastai", "static"] = Field(
        "",
        description="Where GPU machines come from: `vastai` rents them, `static` takes those of GPU_STATIC_MACHINES; "
        "empty: there are none, and nothing is rented.",
    )
    vastai_api_key: SecretStr = Field(SecretStr(""), description="Key of the account at Vast.ai.")
    vastai_url: str = Field("https://console.vast.ai", pattern=r"^https?://", description="Where its API is.")
    gpu_token_secret: SecretStr = Field(
        SecretStr(""),
        description="What the tokens of rented machines are made of: 32 characters or more that nobody can guess, the "
        "same for the controller and the workers.",
    )
    gpu_static_machines: list[dict[str, Any]] = Field(
        default_factory=list,
        description='Machines that are there already, as JSON: [{"name": "rack1", "url": "http://10.0.0.7:11434", '
        '"kind": "ollama", "slots": 8, "gpu_type": "RTX_4090", "gpu_count": 1, "usd_per_hour": 0.2}].',
    )
    gpu_static_key: SecretStr = Field(SecretStr(""), description="Key of the model servers on static machines.")
    gpu_model_server: str = Field(
        "gpu", pattern=r"^[^/\s]{1,64}$", description="The server that runs name for models on GPU machines: gpu/NAME."
    )
    gpu_type: str = Field("RTX_4090", pattern=r"^[\w.-]{1,64}$", description="GPU of the machines that are started.")
    gpu_count: int = Field(1, ge=1, le=16, description="GPUs of a machine.")
    gpu_image: str = Field("ollama/ollama:latest", min_length=1, description="Image of a rented machine.")
    gpu_disk_gb: int = Field(50, ge=1, le=10_000, description="Disk of a rented machine, in GB.")
    gpu_models: list[str] = Field(
        default_factory=list,
        description='Models that a machine loads at its start, and offers before it counts as healthy: ["qwen2.5:7b"].',
    )
    gpu_machine_slots: int = Field(4, ge=1, le=1000, description="Calls that a machine gets at once, of all workers.")
    gpu_min_machines: int = Field(1, ge=0, le=100, description="So many machines there are also without work.")
    gpu_max_machines: int = Field(5, ge=1, le=100, description="Most machines, with those that start or end.")
    gpu_scale_queue: str = Field(
        "",
        description="Queue of runs whose length the autoscaler goes by; empty: the calls that wait for the machines.",
    )
    gpu_scale_out_above: int = Field(100, ge=0, description="When more than so many wait, a machine is started.")
    gpu_scale_in_below: int = Field(10, ge=0, description="When fewer than so many wait, a machine is stopped.")
    gpu_scale_in_seconds: float = Field(600.0, ge=0, description="For how long fewer have to wait before that.")
    gpu_period_seconds: float = Field(60.0, ge=1, description="How often the autoscaler decides.")
    gpu_drain_seconds: float = Field(
        120.0, ge=15, le=900, description="How long a machine may go on with its calls before it is stopped."
    )
    gpu_machine_usd_per_hour_max: float = Field(
        0.8, gt=0, le=1000, description="Highest price of a machine that is rented."
    )
    gpu_usd_per_hour_max: float = Field(2.5, ge=0, le=10_000, description="What all machines may cost in an hour.")
    gpu_usd_per_day_max: float = Field(30.0, ge=0, le=100_000, description="What all may cost in a day of UTC.")
    gpu_router_url: str = Field(
        "",
        pattern=r"^(https?://.*)?$",
        description="Where else machines are registered: PUT and DELETE of this URL, a slash and the machine's name.",
    )
    gpu_router_token: SecretStr = Field(SecretStr(""), description="Bearer token of that router.")
