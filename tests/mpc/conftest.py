"""What several modules of tests need."""

import jax
import pytest


@pytest.fixture(scope="module")
def compile_quickly():
    """What runs once need not run fast: most of such a module's time is XLA's."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
