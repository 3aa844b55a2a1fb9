"""What the API takes and gives of GPU machines. No answer holds a machine's token."""

from datetime import datetime
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field

from app.schemas.fields import StrictRequest
from backplane.domain.budgets import Resource, amount_text
from backplane.domain.gpus import ID_PATTERN, Charge, FleetStatus, Machine, MachineState, Offer, Spending

GpuMachineId = Annotated[
    str, Path(pattern=ID_PATTERN, examples=["0123456789ab"], description="Id of a GPU machine, as POST gave it.")
]
_Usd = Annotated[str, Field(description="Dollars.", examples=["0.35"])]


class NewGpuMachine(StrictRequest):
    """What is left out is as the settings say."""

    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,64}$", examples=["RTX_4090"])
    gpu_count: int | None = Field(None, ge=1, le=16, examples=[1])
    image: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$", examples=["ollama/ollama:latest"])


class GpuMachineView(BaseModel):
    id: str = Field(examples=["0123456789ab"])
    status: MachineState = Field(description="`terminating` until the provider's whole list lacks it.")
    provider: str = Field(examples=["vastai"])
    gpu_type: str = Field(examples=["RTX_4090"])
    gpu_count: int = Field(examples=[1])
    image: str = Field(examples=["ollama/ollama:latest"])
    reason: str = Field(description="Why it is not ready, or why it ends; empty: there is nothing to say.")
    usd_per_hour: str = Field(description="Dollars an hour, reserved or real.", examples=["0.35"])
    usd_booked: str = Field(
        description="Dollars that are in the ledger; the hour that goes on is not.", examples=["1.4"]
    )
    contract: str | None = Field(description="Its id at the provider.", examples=["12345678"])
    wanted_by: str = Field(description="`autoscaler`, or the id of the user who asked for it.", examples=["autoscaler"])
    created_at: datetime
    ready_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, machine: Machine) -> "GpuMachineView":
        reason = machine.reason
        if machine.stop_reason is not None and machine.ended_at is None:
            reason = f"it is to end: {machine.stop_reason}"
        return cls(
            id=machine.id,
            status=machine.state,
            provider=machine.provider,
            gpu_type=machine.spec.gpu_type,
            gpu_count=machine.spec.gpu_count,
            image=machine.spec.image,
            reason=reason,
            usd_per_hour=_usd(machine.micro_usd_per_hour),
            usd_booked=_usd(machine.charged_micro_usd),
            contract=machine.contract,
            wanted_by=machine.wanted_by,
            created_at=machine.created_at,
            ready_at=machine.ready_at,
            ended_at=machine.ended_at,
        )


class GpuMachineList(BaseModel):
    instances: list[GpuMachineView]


class GpuChargeView(BaseModel):
    since: datetime
    until: datetime
    usd: _Usd

    @classmethod
    def of(cls, charge: Charge) -> "GpuChargeView":
        return cls(since=charge.since, until=charge.until, usd=_usd(charge.micro_usd))


class GpuMachineExplained(BaseModel):
    text: str = Field(
        description="One sentence.",
        examples=["Machine 0123456789ab is starting: its model server has not loaded m yet."],
    )
    instance: GpuMachineView
    charges: list[GpuChargeView] = Field(description="What is booked of it, the oldest first.")


class GpuOfferView(BaseModel):
    id: str = Field(examples=["7654321"])
    gpu_type: str = Field(examples=["RTX_4090"])
    gpu_count: int = Field(examples=[1])
    usd_per_hour: _Usd
    gpu_ram_gb: float | None = Field(description="Of one GPU.", examples=[24.0])
    reliability: float | None = Field(description="As the provider has it, from 0 to 1.", examples=[0.99])

    @classmethod
    def of(cls, offer: Offer) -> "GpuOfferView":
        return cls(
            id=offer.id,
            gpu_type=offer.gpu_type,
            gpu_count=offer.gpu_count,
            usd_per_hour=_usd(offer.micro_usd_per_hour),
            gpu_ram_gb=offer.gpu_ram_gb,
            reliability=offer.reliability,
        )


class GpuFleetView(BaseModel):
    looked_at: datetime | None = Field(description="When a controller last looked; null: none has.")
    waiting: int | None = Field(
        description="Calls, or runs, that the autoscaler went by; null: not known.", examples=[37]
    )
    decision: str = Field(
        description="Why it starts or stops a machine, or does not.",
        examples=["37 wait: between 10 and 100 nothing changes"],
    )
    error: str = Field(description="Why the provider could not be asked; empty: it was.")
    usd_per_hour: str = Field(description="Dollars that all machines cost in an hour.", examples=["0.7"])
    usd_today: str = Field(description="Dollars since midnight (UTC).", examples=["3.21"])
    usd_per_hour_max: str = Field(examples=["2.5"])
    usd_per_day_max: str = Field(examples=["30"])
    offers: list[GpuOfferView] = Field(description="What could be had then, the cheapest first.")

    @classmethod
    def of(
        cls, status: FleetStatus | None, decision: str, spending: Spending, per_hour: int, per_day: int
    ) -> "GpuFleetView":
        return cls(
            looked_at=status.at if status else None,
            waiting=status.waiting if status else None,
            decision=decision,
            error=status.error if status else "",
            usd_per_hour=_usd(spending.per_hour),
            usd_today=_usd(spending.today),
            usd_per_hour_max=_usd(per_hour),
            usd_per_day_max=_usd(per_day),
            offers=[GpuOfferView.of(offer) for offer in status.offers] if status else [],
        )


def _usd(micro_usd: int) -> str:
    return amount_text(Resource.MICRO_USD, micro_usd)
