"""The router of the API's operations. The application takes its routes as they are (`app.main`), so what all of them
have in common stands here, and not where the application is made."""

from typing import Any

from fastapi import APIRouter


class Operations(APIRouter):
    """The name of an operation's function is its id, so it is renamed only where clients may break."""

    def __init__(self, **options: Any) -> None:
        super().__init__(generate_unique_id_function=lambda route: route.name, **options)
