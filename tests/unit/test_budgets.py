"""Amounts as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.domain.budgets import AMOUNT_MAX, Amounts, Resource, amount_of, amount_text, in_words
from backplane.errors import InvalidInput


@given(st.sampled_from(Resource), st.integers(1, AMOUNT_MAX))
def test_an_amount_that_is_written_and_read_is_the_same(resource: Resource, amount: int) -> None:
    assert amount_of(resource, amount_text(resource, amount)) == amount


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [
        (Resource.MICRO_USD, 12_500_000, "12.5"),
        (Resource.MICRO_USD, 1, "0.000001"),
        (Resource.MICRO_USD, -2_000_000, "-2"),
        (Resource.MICRO_USD, -1, "-0.000001"),
        (Resource.TOKENS, -5, "-5"),
    ],
)
def test_dollars_are_written_with_no_more_places_than_they_need(resource: Resource, amount: int, text: str) -> None:
    assert amount_text(resource, amount) == text


@pytest.mark.parametrize("text", ["", "0", "0.0", "-1", "1.", ".5", "1.0000001", "1e3", "١", "1_000", " 1", "9" * 17])
def test_what_is_no_amount_of_dollars_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        amount_of(Resource.MICRO_USD, text)
    assert refused.value.field == "amount"


def test_only_dollars_have_places() -> None:
    with pytest.raises(InvalidInput, match="whole numbers"):
        amount_of(Resource.STEPS, "1.5")


def test_an_amount_in_words_has_its_unit() -> None:
    assert [in_words(Resource.TOKENS, 5), in_words(Resource.MICRO_USD, 50_000)] == ["5 tokens", "$0.05"]


def test_amounts_add_up() -> None:
    assert Amounts(1, 2, 3, 4) + Amounts(tokens=10) == Amounts(11, 2, 3, 4)
