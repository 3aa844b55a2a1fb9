"""The embedding that needs no model."""

import json
import math
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from worker.llm.embedding import HASHED_DIMENSIONS, HashedEmbedder, hashed

SENTENCE = "The invoice of the Zürich office was paid twice."


def near(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(hashed(one), hashed(other), strict=True))


def test_texts_that_share_words_are_nearer_than_others() -> None:
    assert near(SENTENCE, "Was the Zürich invoice paid?") > 0.4
    assert abs(near(SENTENCE, "Penguins cannot fly.")) < 0.2


def test_forms_of_a_word_are_near() -> None:
    assert near("running", "runs") > near("running", "sitting") + 0.02
    assert near("Rechnung", "rechnungen") > 0.3


def test_letters_that_look_the_same_are_the_same() -> None:
    assert near("Ｚürich CAFÉ", "zürich cafe\u0301") > 0.999


@given(st.text(alphabet=st.characters(), max_size=300))
def test_every_text_has_one_vector_of_length_one(text: str) -> None:
    vector = hashed(text)
    assert len(vector) == HASHED_DIMENSIONS
    assert math.isclose(math.sqrt(sum(value * value for value in vector)), 1.0, rel_tol=1e-9) or not any(vector)


def test_another_process_makes_the_same_vectors() -> None:
    code = f"import json; from worker.llm.embedding import hashed; print(json.dumps(hashed({SENTENCE!r})))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert json.loads(found.stdout) == hashed(SENTENCE)


async def test_the_embedder_says_how_long_its_vectors_are() -> None:
    embedder = HashedEmbedder()
    vectors = await embedder.embed(["a", "b"])
    assert [len(vector) for vector in vectors] == [await embedder.dimensions()] * 2
