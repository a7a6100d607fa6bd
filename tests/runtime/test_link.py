"""What a link may be."""

import pytest

from primia_jax.errors import ConfigError
from primia_jax.runtime import Link


@pytest.mark.parametrize("field", ("latency_s", "bandwidth_bps", "jitter_s"))
@pytest.mark.parametrize("value", (-1.0, float("inf"), float("nan")))
def test_impossible_links_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} of a link = "):
        Link(**{field: value})
