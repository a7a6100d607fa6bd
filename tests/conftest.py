"""One thread for XLA in every process, so that runs under all drivers agree to the bit."""

from primia_jax import environment

environment.set_up_process(threads=1)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from primia_jax.runtime import ray_driver  # noqa: E402

# No deadlines: a first call compiles. Derandomised: a failure must come again on the next run.
hypothesis.settings.register_profile("primia", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("primia")


@pytest.fixture(scope="session")
def ray_cluster():
    """An embedded Ray, started once for all tests that need it."""
    with ray_driver.cluster(None):
        yield
