"""How a model is named: by its server, and by its name there."""

from dataclasses import dataclass
from typing import Self

from backplane.errors import InvalidInput

SERVER_CHARS, MODEL_CHARS = 64, 200


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """SERVER/NAME. A model's own name may hold slashes and colons."""

    server: str
    model: str

    @classmethod
    def parse(cls, text: str, field: str = "model") -> Self:
        """Raises InvalidInput, whose `field` is the one given."""
        server, slash, model = text.strip().partition("/")
        is_short = len(server) <= SERVER_CHARS and len(model) <= MODEL_CHARS
        if not (server and slash and model and is_short and text.isprintable()):
            raise InvalidInput(f"{field}: {text[:100]!r} is no model; write SERVER/NAME", field=field)
        return cls(server, model)

    def __str__(self) -> str:
        return f"{self.server}/{self.model}"
