"""Which models are asked, in which order: decided without a server."""

from decimal import Decimal
from typing import cast

import pytest

from backplane.domain.models import ModelName
from worker.llm.base import ModelRefused, ModelServer
from worker.llm.catalogue import Price, Prices, ServerSpec
from worker.llm.choice import OTHER, ModelChoice

LARGE, SMALL, FAR = (ModelName.parse(name) for name in ("one/large", "one/small", "two/far"))
PRICE = Price(Decimal(2), Decimal(8))
SERVERS = {name: (ServerSpec(name, "openai", "http://127.0.0.1:1"), cast(ModelServer, None)) for name in ("one", "two")}


def choice(default: ModelName | None = LARGE, *fallbacks: ModelName) -> ModelChoice:
    prices = Prices({"two/*": PRICE}, frozenset({"one"}))
    return ModelChoice(SERVERS, prices, default, fallbacks, frozenset({LARGE, *fallbacks}))


@pytest.mark.parametrize(
    ("named", "fallbacks", "expected"),
    [
        (None, (), [LARGE]),
        (None, (FAR, SMALL), [LARGE, FAR, SMALL]),
        (None, (FAR, LARGE), [LARGE, FAR]),
        ("two/another", (FAR,), [ModelName.parse("two/another")]),
    ],
)
def test_the_default_and_its_fallbacks_are_tried_in_order_and_a_named_model_alone(
    named: str | None, fallbacks: tuple[ModelName, ...], expected: list[ModelName]
) -> None:
    assert [candidate.name for candidate in choice(LARGE, *fallbacks).candidates(named)] == expected


@pytest.mark.parametrize(
    ("named", "words"),
    [(None, "set MODEL"), ("three/m", "there are: one, two"), ("no-server", "SERVER/NAME")],
)
def test_a_model_that_cannot_be_asked_is_refused_with_what_to_do(named: str | None, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        choice(None).candidates(named)


def test_a_candidate_has_the_price_of_its_server_where_its_own_is_not_known() -> None:
    assert choice().candidate(FAR).price == PRICE


def test_metrics_name_the_models_of_the_settings_and_no_others() -> None:
    assert [choice().label(name) for name in (LARGE, SMALL)] == ["large", OTHER]


@pytest.mark.parametrize(("default", "is_set"), [(LARGE, True), (None, False)])
def test_a_default_decides_whether_a_run_that_names_no_model_has_one(default: ModelName | None, is_set: bool) -> None:
    assert choice(default).is_set is is_set
