"""The latency study: the published protocols beside this project's, under links of all kinds.

Every repetition takes an image that was not used before and keys made for it, and runs once, all
parties in this process with virtual clocks; `runtime.replay` then times the same run under every
link. The protocols take turns, so that a busy machine slows all alike. The networks have random
weights: the cost of a protocol depends on shapes (fss: on the layers' ranges too), not on values. A
sample is repeated over real actors with real delays.
"""

from primia_jax.campaigns.latency.campaign import check, run
from primia_jax.campaigns.latency.networks import NETWORKS, Network
from primia_jax.campaigns.latency.results import Study

__all__ = ["NETWORKS", "Network", "Study", "check", "run"]
