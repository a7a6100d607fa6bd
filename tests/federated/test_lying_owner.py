"""A model owner that tells hospitals different things, to have one input alone in a sum.

With a model of its own choice at all other hospitals it knows what these contribute, and takes it
off the sum. Local training is replaced as in `test_final_sums`.
"""

import dataclasses
import functools

import numpy as np
import pytest
from test_final_sums import Runs

from primia_jax.errors import ProtocolError, UserError
from primia_jax.federated import hospital, model_owner, quantities
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.quantities import UPDATE, Announcement, Quantity
from primia_jax.federated.variables import Vectors
from primia_jax.runtime import Locally, Send

VICTIM = "hospital_1"


def other_weights(message):
    """Weights of zero."""
    params, moments = message["model"]
    return {**message, "model": (tuple(np.zeros_like(leaf) for leaf in params), moments)}


def other_moments(message):
    """Larger variances; much larger ones let nothing pass a batch norm that is frozen."""
    params, moments = message["model"]
    return {**message, "model": (params, 2 * np.asarray(moments))}


def other_statistics(message):
    """A deviation of pixels so large that all images are the same."""
    if "statistics" not in message:
        return message
    mean, std, weights = message["statistics"]
    return {**message, "statistics": (mean, std * np.float32(1e12), weights)}


class Liar:
    """A driver whose model owner changes what it sends to all but the victim, by `change`.

    Its announcements name the model that the receiver was sent.
    """

    def __init__(self, inner, change=lambda message: message):
        self._inner, self._change, self._digests = inner, change, {}
        self.rounds = {}  # of hospitals that are called for another than the first

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def run(self, programs, *arguments, **options):
        honest = programs.get(OWNER)
        if honest is not None and not isinstance(honest, Locally):
            programs = {**programs, OWNER: lambda state: self._lying(honest(state))}
        return self._inner.run(programs, *arguments, **options)

    def _lying(self, steps):
        reply = None
        while True:
            try:
                event = steps.send(reply)
            except StopIteration as stop:
                return stop.value
            if not isinstance(event, Send):
                reply = yield event
                continue
            for name in (event.to,) if isinstance(event.to, str) else event.to:
                message = self._message(name, event)
                reply = yield dataclasses.replace(event, to=(name,), message=message)

    def _message(self, name, event):
        message = event.message
        if event.label == "global model":
            message = message if name == VICTIM else self._change(message)
            self._digests[name] = quantities.digest_of_vectors(Vectors(*message["model"]))
        if event.label.startswith("numbers of a sum") and name in self._digests:
            quantity = Quantity(UPDATE, self.rounds.get(name, 1), self._digests[name])
            digest = quantities.digest_of_quantity(quantity)
            message = Announcement.of(message)._replace(quantity=digest).message()
        return message


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("change", [other_weights, other_moments, other_statistics])
def test_hospitals_that_were_sent_different_things_are_not_summed(monkeypatch, tmp_path, n, change):
    """Additive sums and masked ones: any two that mask each other compare what they were sent."""
    runs = Runs(monkeypatch, hospitals=n, norm="batch", secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.driver = Liar(federation.driver, change)
    federation.set_up()
    before = list(runs.revealed)
    assert [purpose for purpose, *_ in before] == ["statistics"]
    with pytest.raises(UserError, match=r"of another sum than|are too few|is given up"):
        federation.train_round(1)
    assert runs.revealed == before


@pytest.mark.parametrize("n", [3, 6])
def test_hospitals_that_were_called_for_different_rounds_are_not_summed(monkeypatch, tmp_path, n):
    """The operator and the model owner agree on what to tell each."""
    runs = Runs(monkeypatch, hospitals=n, secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.driver = driver = Liar(federation.driver)
    federation.set_up()
    before, driver.rounds = list(runs.revealed), {VICTIM: 2}
    programs = {
        name: functools.partial(
            hospital.train_round, number=driver.rounds.get(name, 1), due=("update",)
        )
        for name in runs.names
    }
    programs[OWNER] = functools.partial(model_owner.train_round, number=1)
    with pytest.raises(ProtocolError, match="of another sum than"):
        driver.run(programs)
    assert runs.revealed == before


def test_hospitals_that_were_sent_the_same_are_summed(monkeypatch, tmp_path):
    """The liar's own messages are right where it changes nothing."""
    runs = Runs(monkeypatch, hospitals=3, norm="batch", secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.driver = Liar(federation.driver)
    federation.set_up()
    with pytest.raises(ProtocolError, match="it was called for the validation"):
        federation.train_round(1)  # whose announcement names the update
    assert [purpose for purpose, *_ in runs.revealed] == ["statistics", "update"]
