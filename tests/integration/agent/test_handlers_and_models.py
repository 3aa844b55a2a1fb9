"""Handlers that ask a model: the answer is journalled, and one that does not fit may be mended."""

from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runs import RunStatus
from tests.integration.agent.conftest import StartWithModels
from tests.platform.workers import Platform
from tests.scripted_models import ScriptedModels, said

pytestmark = pytest.mark.slow

FILE = str(Path(__file__).parents[1] / "worker" / "handlers.py")


async def value_of(platform: Platform, given: str) -> Any:
    run_id = await platform.submit(handler="asks-a-model", input=given)
    run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED)
    assert run.result is not None
    return run.result["value"] if run.error is None else run.error.code


async def test_a_handler_gets_the_text_of_a_model(start_with_models: StartWithModels, models: ScriptedModels) -> None:
    platform = await start_with_models(handlers_file=FILE)
    models.script(said("ollama", "Good morning."))
    assert await value_of(platform, "text") == "Good morning."
    [asked] = models.asked
    assert [message["content"] for message in asked.body["messages"]] == ["Say hello."]


async def test_a_handler_gets_an_object_of_its_class_also_where_the_first_answer_does_not_fit(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    platform = await start_with_models(handlers_file=FILE)
    models.script(said("ollama", '{"name": "Ulm"}'), said("ollama", 'Here: {"name": "Ulm", "people": 128928}'))
    assert await value_of(platform, "object") == 128928
    first, second = models.asked
    assert first.body["format"]["required"] == ["name", "people"]
    assert "Your answer does not fit" in second.body["messages"][-1]["content"]


async def test_a_model_that_never_fits_the_schema_fails_the_effect(
    start_with_models: StartWithModels, models: ScriptedModels
) -> None:
    platform = await start_with_models(handlers_file=FILE, run_max_retries=0)
    models.script(*(said("ollama", "no") for _ in range(3)))
    assert await value_of(platform, "object") == "model_output_invalid"
