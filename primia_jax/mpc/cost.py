"""Cost of a run of an encrypted network."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Cost of one run.

    Attributes:
      round_trips: one-way messages on the critical path, halved.
      online_bytes: of all messages of a run.
      key_bytes: that the crypto provider sends to each.
      client_bytes: that the data owner sends the model owner before it has an image.
    """

    round_trips: float
    online_bytes: int
    key_bytes: dict[str, int]
    client_bytes: int
