"""What every protocol promises, whichever is chosen: one suite that all inherit.

Each runs networks that were not written for it, gives what they give, costs what it declares, hides
every message, and uses what was dealt once. Then what is peculiar to one: AriaNN's failures.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.config import MpcConfig
from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import inference, ring
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.shared_circuit import truncated
from primia_jax.mpc.transcript import MASKS, Transcript
from primia_jax.runtime import LocalDriver, Receive

SIDE = 8
PARTIES = (DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER)


pytestmark = pytest.mark.usefixtures("compile_quickly")


def lenet(x):
    """Convolutions, maxima and dense layers."""
    x = nn.max_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (3, 3), (2, 2))
    return nn.Dense(3)(nn.relu(nn.Dense(5)(x.reshape(len(x), -1))))


def residual(x):
    """Two products in one step, an average of a ninth, a sum that bypasses weights."""
    x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (3, 3), (2, 2), "SAME")
    y = nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x))
    x = nn.relu(nn.Conv(4, (3, 3))(y) + nn.Conv(4, (1, 1))(x) + x)
    return nn.Dense(3)(x.mean((1, 2)))


def branches(x):
    """Several outputs, concatenation, groups, a leaky activation and one without any."""
    a = nn.leaky_relu(nn.Conv(4, (3, 3), (2, 2))(x), 0.3)
    b = nn.Conv(4, (3, 3), (2, 2), feature_group_count=2)(jnp.concatenate([x, -x], -1))
    features = jnp.concatenate([a, b], -1).mean((1, 2))
    return {"logits": nn.Dense(3)(features), "features": [features]}


NETWORKS = {function.__name__: function for function in (lenet, residual, branches)}


@functools.cache
def module_and_params(name):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return NETWORKS[name](x)

    return Network().apply, Network().init(jax.random.key(1), jnp.zeros((1, SIDE, SIDE, 1)))


def pictures(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, SIDE, SIDE, 1)).astype(np.float32)


@functools.cache
def make_program(protocol, name="residual", batch=1, **settings):
    apply_fn, params = module_and_params(name)
    example = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 1), np.float32)
    config = MpcConfig(protocol=protocol, **settings)
    return inference.encrypt(apply_fn, params, example, calibration=pictures(8), config=config)


class Contract:
    """What all protocols share; subclasses name theirs."""

    protocol: str
    settings: ClassVar[dict[str, int]] = {}
    tolerance = 2e-3  # of the largest output, against floats

    def program(self, name="residual", batch=1):
        return make_program(self.protocol, name, batch, **self.settings)

    @property
    def programs(self):
        return PROTOCOLS[self.protocol]

    def started(self, n_keys=2):
        """(a driver after set-up, with keys for `n_keys` runs; their numbers)."""
        program, protocol = self.program(), self.programs
        params = module_and_params("residual")[1]
        driver = LocalDriver(
            {
                DATA_OWNER: lambda: protocol.data_owner(program.circuit),
                MODEL_OWNER: lambda: protocol.model_owner(program.circuit, params),
                CRYPTO_PROVIDER: lambda: protocol.provider(program.circuit),
            }
        )
        driver.run(dict.fromkeys(PARTIES, protocol.set_up))
        first = protocol.next_number(driver.states[CRYPTO_PROVIDER])
        numbers = tuple(range(first, first + n_keys))
        prepare = functools.partial(protocol.prepare, numbers=numbers)
        driver.run(dict.fromkeys(PARTIES, prepare))
        return driver, numbers

    def inference(self, images, **options):
        protocol = self.programs
        return {
            DATA_OWNER: functools.partial(protocol.infer_data_owner, image=images, **options),
            MODEL_OWNER: functools.partial(protocol.infer_model_owner, **options),
            CRYPTO_PROVIDER: functools.partial(protocol.infer_provider, **options),
        }

    @pytest.mark.parametrize(
        "name", (pytest.param("lenet", marks=pytest.mark.slow), "residual", "branches")
    )
    def test_gives_what_the_network_gives(self, name):
        apply_fn, params = module_and_params(name)
        program, images = self.program(name, batch=2), pictures(2, seed=7)
        wanted, clear = apply_fn(params, images), program.plaintext(images)
        found, trace = program.run(images)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for f, c, w in zip(*map(jax.tree.leaves, (found, clear, wanted))):
            assert f.shape == w.shape and f.dtype == w.dtype
            assert np.abs(f - w).max() < 5 * self.tolerance * np.abs(w).max()
            assert np.abs(c - w).max() < 2 * self.tolerance * np.abs(w).max()
        assert trace.round_trips == self.programs.cost(program.circuit).round_trips

    def test_costs_what_it_declares(self):
        program = self.program()
        program.prepare()
        declared = self.programs.cost(program.circuit)
        _, trace = program.run(pictures(1))
        assert trace.bytes_sent == declared.online_bytes
        assert trace.round_trips == declared.round_trips
        for party, n_bytes in declared.key_bytes.items():
            dealt = [
                message.n_bytes
                for message in program.offline_trace.messages
                if (message.sender, message.receiver) == (CRYPTO_PROVIDER, party)
            ]
            assert sum(dealt) == n_bytes

    def test_the_trace_tells_layers_and_parties(self):
        program = self.program()
        _, trace = program.run(pictures(1), latency_s=0.5, bandwidth_bps=1e9)
        stages = trace.by_stage()
        assert {"image", "outputs"} < set(stages) and any("relu" in stage for stage in stages)
        sent = sum(row["bytes_sent"] for stage in stages.values() for row in stage.values())
        assert sent == trace.bytes_sent
        assert trace.seconds >= trace.round_trips * 2 * 0.5

    def test_every_message_is_masked(self):
        protocol, program = self.programs, self.program()
        params, transcript = module_and_params("residual")[1], Transcript()
        driver = LocalDriver(
            {
                DATA_OWNER: lambda: protocol.data_owner(program.circuit),
                MODEL_OWNER: lambda: protocol.model_owner(program.circuit, params),
                CRYPTO_PROVIDER: lambda: protocol.provider(program.circuit),
            }
        )

        def run(programs):
            driver.run({p: transcript.recorded(p, steps) for p, steps in programs.items()})

        run(dict.fromkeys(PARTIES, protocol.set_up))
        run(self.inference(pictures(1), streamed=True))
        assert len(transcript.check_messages()) == len(transcript.entries) > 10
        readable = [e for e in transcript.entries if MASKS[e.mask] is False]
        assert sum(entry.n_bytes for entry in readable) < 500  # numbers and shapes
        to_provider = [e for e in transcript.entries if CRYPTO_PROVIDER in e.readers]
        assert {"seed of the data owner", "seed"} & {entry.what for entry in to_provider}

    def test_dealt_now_or_before_is_the_same(self):
        driver, _ = self.started()
        images = pictures(1, seed=3)
        found = [
            driver.run(self.inference(images, **options))[0][DATA_OWNER].outputs[0]
            for options in ({}, {}, {"streamed": True})
        ]
        for other in found[1:]:
            np.testing.assert_allclose(found[0], other, atol=0.01)

    def test_what_was_dealt_serves_once(self):
        driver, numbers = self.started()
        driver.run(self.inference(pictures(1)))
        state = driver.states[MODEL_OWNER]
        assert self.programs.next_number(state) > max(numbers)
        steps = self.programs.infer_model_owner(state)
        event = next(steps)
        while not isinstance(event, Receive):
            event = next(steps)
        with pytest.raises(ProtocolError, match=f"key {numbers[0]}"):
            steps.send({"number": np.uint64(numbers[0]), "image": np.zeros(64, np.uint32)})
        with pytest.raises(ProtocolError, match=f"key {numbers[1]} was made before"):
            again = functools.partial(self.programs.prepare, numbers=numbers[1:])
            driver.run(dict.fromkeys(PARTIES, again))

    def test_a_failed_run_burns_its_number(self):
        driver, _ = self.started()
        before = [self.programs.available(driver.states[p]) for p in (DATA_OWNER, MODEL_OWNER)]
        programs = self.inference(pictures(1))

        def dies(state):
            steps = programs[MODEL_OWNER](state)
            event = steps.send(None)
            for _ in range(6):
                event = steps.send((yield event))
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            driver.run(programs | {MODEL_OWNER: dies})
        after = [self.programs.available(driver.states[p]) for p in (DATA_OWNER, MODEL_OWNER)]
        assert before == [2, 2] and after == [1, 1]
        driver.run(programs)

    @pytest.mark.parametrize("party", PARTIES)
    @pytest.mark.parametrize("n_events", (1, 7))
    def test_a_streamed_run_that_fails_blocks_nothing(self, party, n_events):
        driver, _ = self.started(n_keys=0)
        programs = self.inference(pictures(1), streamed=True)

        def dies(state):
            steps, message = programs[party](state), None
            for _ in range(n_events):
                message = yield steps.send(message)
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            driver.run(programs | {party: dies})
        driver.run(programs)

    def test_half_a_preparation_is_told(self):
        driver, numbers = self.started(n_keys=0)
        assert numbers == ()
        first = self.programs.next_number(driver.states[DATA_OWNER])
        prepare = functools.partial(self.programs.prepare, numbers=(first,))
        steps = {party: prepare for party in PARTIES}

        def dies(state):
            event = next(prepare(state), None)
            if event is not None:  # securenn prepares without messages
                yield event
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            driver.run(steps | {MODEL_OWNER: dies})
        if self.programs.available(driver.states[DATA_OWNER]):
            with pytest.raises(ProtocolError, match=f"key {first}|no key is left"):
                driver.run(self.inference(pictures(1)))
        driver.run(self.inference(pictures(1), streamed=True))

    def test_sessions_begin_once_and_first(self):
        driver, _ = self.started(n_keys=1)
        with pytest.raises(ProtocolError, match="set up already"):
            driver.run(dict.fromkeys(PARTIES, self.programs.set_up))
        fresh = self.programs.data_owner(self.program().circuit)
        steps = self.programs.prepare(fresh, (1,))
        with pytest.raises(ProtocolError, match="run the set-up first"):
            for _ in range(3):
                next(steps)

    @pytest.mark.parametrize(
        ("images", "message"),
        (
            (np.zeros((1, SIDE, SIDE, 3)), "shape"),
            (np.full((1, SIDE, SIDE, 1), np.inf), "finite"),
            (np.full((1, SIDE, SIDE, 1), 99.0), "calibrated"),
        ),
    )
    def test_images_that_do_not_fit_are_refused(self, images, message):
        with pytest.raises(ProtocolError, match=message):
            self.program().run(images)

    def test_overflows_are_foreseen(self):
        program = self.program()
        assert program.check_range(pictures(1)) == []
        assert program.check_range(1e12 * pictures(1))


class TestFss(Contract):
    protocol = "fss"


class TestAriann(Contract):
    protocol = "ariann"
    settings: ClassVar[dict[str, int]] = {"ariann_compare_bits": 64}  # which never fails


class TestSecureNN(Contract):
    protocol = "securenn"


@pytest.mark.parametrize("protocol", ("ariann", "securenn"))
def test_keys_of_the_published_protocols_stay_in_memory(protocol, tmp_path):
    with pytest.raises(ConfigError, match="keeps its keys in memory"):
        make_program(protocol).set_up(tmp_path)


@pytest.mark.parametrize("protocol", ("ariann", "securenn"))
def test_words_too_short_are_said(protocol):
    """Weights of 1e-6 are no words at all: the result would be 0."""
    params = {"a": np.full((4, 4), 1e-6, np.float32), "b": np.full((4, 2), 1e6, np.float32)}
    images = np.ones((2, 4), np.float32)
    with pytest.warns(UserWarning, match="results will be coarse") as told:
        inference.encrypt(
            lambda p, x: nn.relu(x @ p["a"]) @ p["b"],
            params,
            images,
            calibration=images,
            config=MpcConfig(protocol=protocol),
        )
    assert {"weights", "operand"} <= {str(w.message).split()[1] for w in told}


@pytest.mark.parametrize("factor", (1e-20, 0.0, 1e-3, 100.0, 2.0**40))
def test_public_factors_of_any_size(factor):
    """Of the two servers' fixed point: too small gives 0, too large is said."""
    params, images = np.eye(3, dtype=np.float32), np.full((1, 3), 0.5, np.float32)

    def network(weights, x):
        return jnp.maximum(x @ weights, 0) * factor

    def encrypted():
        config = MpcConfig(protocol="ariann")
        return inference.encrypt(network, params, images, calibration=images, config=config)

    if factor > 2.0**31:
        with pytest.raises(ProtocolError, match="multiplies values by 1"):
            encrypted()
        return
    found, _ = encrypted().run(images)
    np.testing.assert_allclose(found, factor * images, atol=factor * 2.0**-11 + 2.0**-12)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ConfigError, match=r"'aria': allowed are fss \| ariann \| securenn"):
        make_program("aria")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_images_make_the_same_messages(protocol):
    """Sizes and number of messages say nothing about the image."""
    program = make_program(protocol)
    shapes = []
    for images in (pictures(1), np.zeros((1, SIDE, SIDE, 1), np.float32)):
        _, trace = program.run(images)
        shapes.append(sorted((m.sender, m.receiver, m.label, m.n_bytes) for m in trace.messages))
    assert shapes[0] == shapes[1]


# --- AriaNN as published, with comparisons of 32 bits


def test_ariann_of_32_bits_is_close_and_cheaper():
    """Few values are so large that they may fail."""
    images = pictures(1, seed=7)
    apply_fn, params = module_and_params("residual")
    wanted = apply_fn(params, images)
    costs = {}
    for bits in (32, 64):
        program = make_program("ariann", ariann_compare_bits=bits)
        found, trace = program.run(images)
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
        costs[bits] = PROTOCOLS["ariann"].cost(program.circuit)
        assert trace.bytes_sent == costs[bits].online_bytes
    assert costs[32].round_trips == costs[64].round_trips
    assert costs[32].key_bytes[DATA_OWNER] < 0.52 * costs[64].key_bytes[DATA_OWNER]


@pytest.mark.parametrize("value", (2**28, -(2**28)))
def test_ariann_takes_a_wrong_sign_as_often_as_theory_says(value):
    """x + α wraps with probability |x| / 2^32: 1 in 16 here, told to a tenth of that."""
    n, frac_bits = 20000, 13
    images = np.full((1, n), value / 2.0**frac_bits, np.float32)
    with pytest.warns(UserWarning, match="will overflow"):
        program = inference.encrypt(
            lambda _, x: nn.relu(x),
            {},
            images,
            calibration=images,
            config=MpcConfig(protocol="ariann", frac_bits=frac_bits),
        )
    found = program.run(images)[0][0] * 2.0**frac_bits
    expected = abs(value) / 2**32
    wrong = (found != max(value, 0)).mean()
    assert abs(wrong - expected) < 6 * np.sqrt(expected * (1 - expected) / n)
    assert set(np.unique(found)) == {0, value}


@pytest.mark.parametrize("value", (2**59, -(2**59)))
def test_local_truncation_fails_as_often_as_theory_says(value):
    n, bits = 20000, 13
    first = np.random.default_rng(0).integers(0, 2**64, n, np.uint64)
    with ring.x64():
        shares = (jnp.asarray(first), jnp.asarray(np.uint64(value % 2**64) - first))
        parts = [truncated(share, bits, i) for i, share in enumerate(shares)]
        whole = np.asarray(ring.to_signed(parts[0] + parts[1]))
    error = whole - (value >> bits)
    wrong = (np.abs(error) > 1).mean()
    expected = abs(value) / 2**64
    assert abs(wrong - expected) < 6 * np.sqrt(expected * (1 - expected) / n)
    jumps = np.round(error[np.abs(error) > 1] / 2.0 ** (64 - bits))
    assert set(np.abs(jumps)) == {1}
