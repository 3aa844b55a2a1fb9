"""Checks values more strictly than clients do: a field that the API's description does not have is a fault."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from app.main import create_app
from backplane.settings import Settings


class DescribedSchemas:
    def __init__(self) -> None:
        described = create_app(Settings.model_validate({})).openapi()
        text = json.dumps(described["components"]["schemas"]).replace("#/components/schemas/", "#/$defs/")
        schemas = json.loads(text)
        for schema in schemas.values():
            _close(schema)
        self._schemas = schemas

    def faults(self, name: str, value: Any) -> list[str]:
        """What is wrong with a value of this schema, in words; nothing where it is as described."""
        validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": self._schemas})
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(value)]

    def faults_of_event(self, event: dict[str, Any]) -> list[str]:
        """By the schema of its type alone, which names the fault better than the union of all."""
        reference = self._schemas["Event"]["discriminator"]["mapping"][event["type"]]
        return self.faults(reference.rpartition("/")[2], event)


def _close(schema: Any) -> None:
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for inner in schema.values():
            _close(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _close(inner)
