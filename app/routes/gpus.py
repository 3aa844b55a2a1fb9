"""/api/vastai/instances: GPU machines. What is wanted is written down here, and a controller makes it so.

All of it is for administrators: machines cost the operator's money, and what they cost is nobody else's business.
"""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from fastapi import Query

from app.auth import Admin
from app.context import ApiContext, ContextOf
from app.edge.json_body import JsonRoute
from app.edge.operations import Operations
from app.errors import responses
from app.schemas.fields import Limit
from app.schemas.gpus import (
    GpuChargeView,
    GpuFleetView,
    GpuMachineExplained,
    GpuMachineId,
    GpuMachineList,
    GpuMachineView,
    NewGpuMachine,
)
from backplane.domain.budgets import MICRO
from backplane.domain.gpus import Machine, MachineSpec, MachineState, decision_in_words, new_machine_id
from backplane.errors import Conflict

NOT_RENTED = "no GPU machines are rented here: set GPU_PROVIDER for the API, the controller and the workers"

router = Operations(route_class=JsonRoute, tags=["GPU machines"])


@router.get("/api/vastai/instances", responses=responses(403, 422))
async def list_gpu_machines(
    _: Admin,
    context: ContextOf,
    ended: Annotated[bool, Query(description="Those too that have ended.")] = False,
    before: Annotated[datetime | None, Query(description="Made before; for the next page.")] = None,
    limit: Limit = 50,
) -> GpuMachineList:
    """The GPU machines, the youngest first."""
    before = before.astimezone(UTC) if before is not None else None
    found = await context.resources.store.gpu_machines.page(before=before, limit=limit, ended=ended)
    return GpuMachineList(instances=[GpuMachineView.of(machine) for machine in found])


@router.post("/api/vastai/instances", status_code=202, responses=responses(403, 409, 413, 422))
async def start_gpu_machine(new: NewGpuMachine, admin: Admin, context: ContextOf) -> GpuMachineView:
    """Ask for a GPU machine. It is wanted from now on; the caps are checked when its price is known."""
    settings = context.settings
    if not settings.gpu_provider:
        raise Conflict(NOT_RENTED)
    spec = MachineSpec(
        settings.gpu_type,
        settings.gpu_count,
        settings.gpu_image,
        settings.gpu_disk_gb,
        tuple(settings.gpu_models),
    )
    spec = replace(spec, **new.model_dump(exclude_none=True))
    now = datetime.now(UTC)
    machine = Machine(new_machine_id(), settings.gpu_provider, spec, MachineState.WANTED, admin.id, now, now)
    if await context.resources.store.gpu_machines.want(machine, settings.gpu_max_machines) is None:
        raise Conflict(f"there are {settings.gpu_max_machines} GPU machines, as many as GPU_MAX_MACHINES allows")
    return GpuMachineView.of(machine)


@router.get("/api/vastai/explain", responses=responses(403))
async def explain_gpu_machines(_: Admin, context: ContextOf) -> GpuFleetView:
    """Why there are so many machines: what waits, what it costs, what could be had."""
    settings, machines = context.settings, context.resources.store.gpu_machines
    status, now = await machines.status(), datetime.now(UTC)
    decision = decision_in_words(status, now) if settings.gpu_provider else NOT_RENTED
    return GpuFleetView.of(
        status,
        decision,
        await machines.spending(now),
        round(Decimal(str(settings.gpu_usd_per_hour_max)) * MICRO),
        round(Decimal(str(settings.gpu_usd_per_day_max)) * MICRO),
    )


@router.get("/api/vastai/instances/{machine}", responses=responses(403, 404, 422))
async def show_gpu_machine(machine: GpuMachineId, _: Admin, context: ContextOf) -> GpuMachineView:
    """A GPU machine, also one that has ended."""
    return GpuMachineView.of(await context.resources.store.gpu_machines.get(machine))


@router.get("/api/vastai/instances/{machine}/explain", responses=responses(403, 404, 422))
async def explain_gpu_machine(machine: GpuMachineId, _: Admin, context: ContextOf) -> GpuMachineExplained:
    """Why a GPU machine is not ready, and what it has cost."""
    return await _explained(machine, context)


@router.delete("/api/vastai/instances/{machine}", status_code=202, responses=responses(403, 404, 422))
async def stop_gpu_machine(machine: GpuMachineId, admin: Admin, context: ContextOf) -> GpuMachineView:
    """Ask for the end of a GPU machine. It gets no new calls, ends those it has, and is destroyed. It costs until the
    provider has it no more. One that has ended stays as it is."""
    found = await context.resources.store.gpu_machines.stop(machine, f"{admin.name} asks for it")
    return GpuMachineView.of(found)


async def _explained(machine_id: str, context: ApiContext) -> GpuMachineExplained:
    """Raises NotFound."""
    machines = context.resources.store.gpu_machines
    view = GpuMachineView.of(await machines.get(machine_id))
    charges = [GpuChargeView.of(charge) for charge in await machines.charges(machine_id)]
    status = await machines.status()
    text = f"Machine {machine_id} is {view.status.value}" + (f": {view.reason}" if view.reason else "") + "."
    if view.ended_at is None and status is not None and status.error:
        text += f" The provider could not be asked: {status.error}."
    return GpuMachineExplained(text=text, instance=view, charges=charges)
