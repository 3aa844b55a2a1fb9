"""A class name has one meaning in the whole product, so that a reader who meets it knows which class it is."""

import re
from collections import defaultdict
from pathlib import Path

from tests.architecture.test_layout import PACKAGES, modules

_CLASS = re.compile(r"^ *class (\w+)\b.*[:(]$|^ *class (\w+)\b.*:", re.MULTILINE)
"""To parse the files would take three seconds."""


def classes() -> dict[str, list[str]]:
    """The files of each class, by its name without a leading underscore."""
    found = defaultdict(list)
    for path, text in modules().items():
        if Path(path).parts[0] in PACKAGES:
            for name in _CLASS.findall(text):
                found["".join(name).lstrip("_")].append(path)
    return found


def test_no_two_classes_of_the_product_have_the_same_name() -> None:
    shared = {name: files for name, files in classes().items() if len(files) > 1}
    assert shared == {}
