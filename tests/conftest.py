"""Assertions in the helpers shared by several test files explain themselves as those in the tests do."""

import pytest

pytest.register_assert_rewrite("replay")
