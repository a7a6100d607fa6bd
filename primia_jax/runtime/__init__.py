"""Party programs and what runs them. The Ray driver is imported from `runtime.ray_driver`."""

from primia_jax.runtime.cost import count
from primia_jax.runtime.faults import Delay, Fault, Vanish
from primia_jax.runtime.link import Link
from primia_jax.runtime.local_driver import LocalDriver, run_local
from primia_jax.runtime.party import (
    MISSING,
    Deadline,
    Driver,
    Locally,
    Program,
    Receive,
    Send,
    Stage,
    Steps,
)
from primia_jax.runtime.replay import replay
from primia_jax.runtime.trace import Action, MessageRecord, PartyTrace, Span, Trace

__all__ = [
    "MISSING",
    "Action",
    "Deadline",
    "Delay",
    "Driver",
    "Fault",
    "Link",
    "LocalDriver",
    "Locally",
    "MessageRecord",
    "PartyTrace",
    "Program",
    "Receive",
    "Send",
    "Span",
    "Stage",
    "Steps",
    "Trace",
    "Vanish",
    "count",
    "replay",
    "run_local",
]
