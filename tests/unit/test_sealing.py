"""Secrets are opened by the key that sealed them, for whom they were sealed."""

import pytest

from backplane.errors import InvalidInput
from backplane.sealing import Seal, SecretsNotKept, new_key

MINE = {"user_id": "me", "name": "TOKEN"}


def test_what_is_sealed_is_opened_and_shows_nothing_meanwhile() -> None:
    seal = Seal(new_key())
    sealed = seal.seal("grün \U0001f512 value", **MINE)
    assert "value" not in sealed
    assert seal.open(sealed, **MINE) == "grün \U0001f512 value"
    assert seal.seal("grün \U0001f512 value", **MINE) != sealed


def test_a_row_that_was_moved_to_another_user_or_name_does_not_open() -> None:
    seal = Seal(new_key())
    sealed = seal.seal("value-value", **MINE)
    for other in ({"user_id": "you", "name": "TOKEN"}, {"user_id": "me", "name": "OTHER"}):
        with pytest.raises(SecretsNotKept):
            seal.open(sealed, **other)


def test_a_new_key_seals_while_the_one_before_still_opens() -> None:
    old, new = new_key(), new_key()
    sealed_before = Seal(old).seal("value-value", **MINE)
    both = Seal(f"{new}, {old}")
    assert both.open(sealed_before, **MINE) == "value-value"
    assert Seal(new).open(both.seal("value-value", **MINE), **MINE) == "value-value"
    with pytest.raises(SecretsNotKept, match="SECRETS_KEY"):
        Seal(new).open(sealed_before, **MINE)


@pytest.mark.parametrize("keys", ["secret-word", "secret-word,secret-word", "ö" * 44])
def test_what_is_no_key_is_refused_without_showing_it(keys: str) -> None:
    with pytest.raises(InvalidInput, match="32 bytes in URL-safe Base64") as raised:
        Seal(keys)
    assert "secret-word" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_without_a_key_there_is_no_seal() -> None:
    assert Seal.of("") is None
    assert "key" not in repr(Seal(new_key()))
