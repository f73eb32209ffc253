"""Groups of processes, started once for all tests: Python with torch takes seconds to start."""

import pytest

from velodrome.testing.worlds import Processes


@pytest.fixture(scope="session")
def two():
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="session")
def three():
    with Processes(3) as processes:
        yield processes
