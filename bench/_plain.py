"""The flow of a run written the plain way, as many a first version is: what `bench.runs` measures the platform against.

A job on RQ, a database row and a commit for each log line, a stream that asks the database for new lines four times a
second; FastAPI, SQLAlchemy's ORM and boto3 as their tutorials have them. It speaks the platform's HTTP, so the same
clients measure both. No tokens, no leases, nothing that a crash would not break. It runs in the peers' environment:
`uvicorn bench._plain:app`, and `work` in a process of its own.
"""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import boto3
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from redis import Redis
from rq import Queue, Worker
from sqlalchemy import JSON, DateTime, ForeignKey, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

POLL_SECONDS = 0.25

engine = create_engine(os.environ["DATABASE_URL"])
redis = Redis.from_url(os.environ["REDIS_URL"])
queue = Queue("plain", connection=redis)
files: Any = boto3.client(
    "s3",
    endpoint_url=os.environ["S3_ENDPOINT"],
    region_name=os.environ["S3_REGION"],
    aws_access_key_id=os.environ["S3_ACCESS_KEY"],
    aws_secret_access_key=os.environ["S3_SECRET_KEY"],
)


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "plain_runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    prompt: Mapped[str]
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Line(Base):
    __tablename__ = "plain_lines"
    run_id: Mapped[str] = mapped_column(ForeignKey("plain_runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class Request(BaseModel):
    action: str
    run_id: str = ""
    prompt: str = ""
    plan: dict[str, Any] = {}


app = FastAPI()


def add_event(session: Session, run_id: str, kind: str, **data: Any) -> None:
    last = session.scalar(select(func.max(Line.number)).where(Line.run_id == run_id)) or 0
    session.add(Line(run_id=run_id, number=last + 1, kind=kind, data=data))
    session.commit()


@app.post("/agent/execute")
def execute(request: Request) -> dict[str, str]:
    with Session(engine, expire_on_commit=False) as session:
        if request.action == "create":
            now = datetime.now(UTC)
            run = Run(id=str(uuid.uuid4()), status="created", prompt=request.prompt, plan=request.plan, created_at=now)
            session.add(run)
            add_event(session, run.id, "status", status="created")
        else:
            run = session.get_one(Run, request.run_id)
            run.status = "queued"
            add_event(session, run.id, "status", status="queued")
            queue.enqueue(carry_out, run.id)
        return {"run_id": run.id, "status": run.status}


@app.get("/agent/logs/{run_id}/stream")
async def stream(run_id: str) -> StreamingResponse:
    return StreamingResponse(_frames(run_id), media_type="text/event-stream")


async def _frames(run_id: str) -> AsyncIterator[str]:
    cursor = 0
    while True:
        for line in await asyncio.to_thread(_lines_after, run_id, cursor):
            yield f"id: {line.number}\nevent: {line.kind}\ndata: {json.dumps(line.data)}\n\n"
            cursor = line.number
            if line.kind == "end":
                return
        await asyncio.sleep(POLL_SECONDS)


def _lines_after(run_id: str, cursor: int) -> list[Line]:
    with Session(engine) as session:
        query = select(Line).where(Line.run_id == run_id, Line.number > cursor).order_by(Line.number)
        return list(session.scalars(query))


def carry_out(run_id: str) -> None:
    with Session(engine) as session:
        run = session.get_one(Run, run_id)
        run.status = "running"
        add_event(session, run_id, "status", status="running")
        add_event(session, run_id, "plan", steps=[step["id"] for step in run.plan["steps"]])
        for step in run.plan["steps"]:
            add_event(session, run_id, "step", step=step["id"], status="started")
            arguments, body = step["arguments"], step["arguments"]["content"].encode()
            files.put_object(Bucket=os.environ["S3_BUCKET"], Key=f"plain/{run_id}/{arguments['path']}", Body=body)
            add_event(session, run_id, "log", line=f"wrote {len(body)} bytes to {arguments['path']}")
            add_event(session, run_id, "step", step=step["id"], status="completed")
        run.status = "completed"
        add_event(session, run_id, "status", status="completed")
        add_event(session, run_id, "end", status="completed")


def work() -> None:
    """One worker, which has loaded what its jobs need: quicker than RQ's own command. It forks for each job."""
    Worker(["plain"], connection=redis).work(logging_level="WARNING")
