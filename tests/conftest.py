"""For all tests: nothing reports home, the libraries are as quiet as in a run, and there is one Ray."""

from collections.abc import Iterator

import pytest

from infra.runtime import quiet_environment

quiet_environment()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray; `infra.runtime.ray_session` uses the running one."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    if started:
        ray.shutdown()
