"""Describes a value by another type than the one that it is checked by."""

from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class DescribedAs:
    """In an `Annotated`: the description names `type`; what is accepted, and how it is encoded, stays as it was."""

    type: Any

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # As the item of a list, since a type that stands alone would be written out here and not be referred to.
        item_of: Any = GenericAlias(list, (self.type,))
        schema: JsonSchemaValue = handler(TypeAdapter(item_of).core_schema)["items"]
        return schema
