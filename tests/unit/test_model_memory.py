"""What fits on a GPU: against the figures that are known of 16 GB."""

import pytest

from agentctl.sizing.model_memory import GB, fit, shape_of
from tests.unit.conftest import Agentctl


@pytest.mark.parametrize(("size", "gigabytes", "at_once"), [("3b", 2, (6, 8)), ("7b", 5, (2, 3)), ("14b", 9, (1, 1))])
def test_sixteen_gigabytes_hold_what_is_known_of_them(size: str, gigabytes: int, at_once: tuple[int, int]) -> None:
    shape = shape_of(size)
    assert shape is not None
    found = fit(shape, 16 * GB, calls=1, context=2048, bits=4.85)
    assert found.weights / GB == pytest.approx(gigabytes, abs=0.5)
    assert at_once[0] <= found.loaded <= at_once[1]


def test_each_call_at_once_costs_its_cache() -> None:
    shape = shape_of("qwen2.5:7b")
    assert shape is not None
    one, four = (fit(shape, 16 * GB, calls=calls, context=4096, bits=4.85) for calls in (1, 4))
    assert four.total - one.total == 3 * one.cache_per_call
    # 2 × 28 layers × 4 heads × 128 × 4,096 tokens × 2 bytes
    assert one.cache_per_call == 2 * 28 * 4 * 128 * 4096 * 2


def test_what_does_not_fit_is_reported_as_none() -> None:
    shape = shape_of("llama3.3:70b")
    assert shape is not None
    found = fit(shape, 16 * GB, calls=1, context=2048, bits=4.85)
    assert (found.loaded, found.parallel) == (0, 0)


def test_the_command_shows_a_table_and_the_settings_of_one_model(agentctl: Agentctl) -> None:
    code, shown, _ = agentctl("models", "fit")
    assert (code, "qwen2.5:14b" in shown) == (0, True)
    code, shown, notes = agentctl("models", "fit", "3b", "--calls", "2")
    assert (code, "OLLAMA_NUM_PARALLEL=2" in notes) == (0, True)
    assert len(shown.splitlines()) == 2


def test_a_model_of_ones_own_is_described_by_its_numbers(agentctl: Agentctl) -> None:
    code, shown, _ = agentctl("models", "fit", "--parameters", "7", "--layers", "32", "--kv-heads", "8", "--json")
    assert (code, '"this one"' in shown) == (0, True)


@pytest.mark.parametrize("wrong", [["nobody:1b"], ["--parameters", "7"], ["7b", "--layers", "3"]])
def test_what_is_not_enough_to_know_a_model_is_refused(agentctl: Agentctl, wrong: list[str]) -> None:
    assert agentctl("models", "fit", *wrong)[0] == 2
