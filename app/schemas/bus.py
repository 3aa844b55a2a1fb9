"""What the API takes and gives of the event bus. Events themselves are CloudEvents, checked by `backplane.domain.bus`:
they have names that nobody can list, and come in three ways."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.schemas.fields import Text
from backplane.domain.bus import (
    BATCH_MAX,
    ID_MAX_CHARS,
    NAMED_MAX,
    SOURCE_MAX_CHARS,
    SUBJECT_MAX_CHARS,
    TYPE_MAX_CHARS,
    Published,
)

EXAMPLE = {
    "specversion": "1.0",
    "id": "9b0f6c1e",
    "source": "/shop",
    "type": "order.created",
    "subject": "42",
    "time": "2026-01-31T09:00:00Z",
    "datacontenttype": "application/json",
    "data": {"order": 42, "total": 19.5},
}


class CloudEventView(BaseModel):
    """A CloudEvent 1.0 in its JSON format. It may have extensions: further names of 1 to 20 letters a to z and digits,
    with a text, a boolean or a whole number."""

    model_config = ConfigDict(extra="allow")

    specversion: str = Field("1.0", description="1.0. It may be left out where the body is application/json.")
    id: str = Field(
        max_length=ID_MAX_CHARS,
        description="With `source` it names the event: one that comes again is stored once.",
    )
    source: str = Field(max_length=SOURCE_MAX_CHARS, description="Who says so: a URI or a path.", examples=["/shop"])
    type: str = Field(
        max_length=TYPE_MAX_CHARS,
        description="A dotted name. Those that begin with run., agent. or deployment. are the platform's own.",
    )
    subject: str | None = Field(None, max_length=SUBJECT_MAX_CHARS, description="What it is about.")
    time: datetime | None = Field(None, description="When it happened, with its offset.")
    datacontenttype: str | None = Field(None, description="The media type of the data.")
    dataschema: str | None = Field(None, description="The URI of a schema of the data.")
    data: Any = Field(None, description="Any JSON value.")
    data_base64: str | None = Field(None, description="Bytes, instead of `data`.")


class PublishedEvent(BaseModel):
    id: str
    source: str
    cursor: int = Field(description="Its place among your events: `after` of the lists and streams.", examples=[17])
    duplicate: bool = Field(description="It was there already, at this place, and stays as it was.")

    @classmethod
    def of(cls, published: Published) -> "PublishedEvent":
        return cls(id=published.id, source=published.source, cursor=published.cursor, duplicate=not published.is_new)


class PublishedBatch(BaseModel):
    events: list[PublishedEvent] = Field(description="In the order in which they were sent.", max_length=BATCH_MAX)


class BusPage(BaseModel):
    events: list[CloudEventView] = Field(description="In the order in which they were stored. It may be empty.")
    cursor: int = Field(description="`after` of the next page.", examples=[42])
    has_more: bool = Field(description="More is there already; else the page ends at the present.")
    missing: bool = Field(
        description="Events behind `after` are not kept any more, or there was never such a place: the page begins "
        "with what there is."
    )


TypePatterns = Annotated[
    list[str],
    Query(
        max_length=NAMED_MAX,
        description="Only events of this type: a type, or a beginning with `.*`, as order.*. It may be given often.",
        examples=[["order.*"]],
    ),
]
Sources = Annotated[
    list[Annotated[Text, Field(max_length=SOURCE_MAX_CHARS)]],
    Query(max_length=NAMED_MAX, description="Only events of this source. It may be given often."),
]
Subjects = Annotated[
    list[Annotated[Text, Field(max_length=SUBJECT_MAX_CHARS)]],
    Query(max_length=NAMED_MAX, description="Only events about this. It may be given often."),
]
