"""Lets pytest explain failed assertions in the modules that tests share, as it does in the tests themselves."""

import pytest

pytest.register_assert_rewrite("tests")
