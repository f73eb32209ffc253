"""Groups of processes, started once for all tests: Python with torch takes seconds to start. Files of slow tests are begun first."""

from contextlib import suppress

import pytest

from velodrome.testing.worlds import Processes

with suppress(ImportError):  # tests/gpu runs where torch and pytest are
    from hypothesis import HealthCheck, settings

    # A busy machine is no fault of the code: nothing is judged by its time.
    settings.register_profile("velodrome", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("velodrome")


@pytest.fixture(scope="session")
def two():
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="session")
def three():
    with Processes(3) as processes:
        yield processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # With files dealt to several processes, one that takes a minute must not be begun last. What `--no-loadscope-reorder` leaves as it is
    # would otherwise be sorted by the number of tests, those of few and long ones last.
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
