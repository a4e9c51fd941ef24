"""Access rules need names."""

from collections.abc import Callable

import pytest

from runtime import roles, services
from tests.runtime.definitions import assert_refused


@pytest.mark.parametrize("make", [roles, services])
def test_roles_and_services_need_at_least_one_name(make: Callable[[], object]) -> None:
    assert_refused(make, "at least one")
