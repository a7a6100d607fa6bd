"""The FSS protocol: exact to its rounding, single-use keys, and nothing seen by anyone else."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from primia_jax.config import MpcConfig
from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import gates, inference, ring
from primia_jax.mpc.in_the_clear import fixed_point_values
from primia_jax.mpc.protocols import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    epochs,
    fss,
    fss_keys,
    masks,
)
from primia_jax.mpc.transcript import Transcript
from primia_jax.runtime import LocalDriver
from primia_jax.runtime.party import Receive

pytestmark = pytest.mark.usefixtures("compile_quickly")

SIDE, CLASSES = 8, 3
SURE = 1e-7  # false alarms of the tests on distributions, for each statistic


class Small(nn.Module):
    """A stem, a residual block and a pooled end."""

    pooling: str = "avg"

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        pool = nn.avg_pool if self.pooling == "avg" else nn.max_pool
        x = pool(x, (2, 2), (2, 2))
        y = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = nn.relu(nn.Conv(8, (3, 3))(y) + x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


def network(pooling="avg", seed=0):
    """(apply_fn, params)."""
    module = Small(pooling)
    params = module.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 1)))
    return module.apply, params


def pictures(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, SIDE, SIDE, 1)).astype(np.float32)


@functools.cache
def make_program(pooling="avg", batch=1, **settings):
    apply_fn, params = network(pooling)
    images = pictures(16)
    example = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 1), np.float32)
    config = MpcConfig(**settings)
    return inference.encrypt(apply_fn, params, example, calibration=images, config=config)


SETTINGS = {
    "default": {},
    "24 bits": {"ring_bits": 24, "effective_bits": 12},
    "28 bits": {"ring_bits": 28, "effective_bits": 15},
    "64 bits": {"ring_bits": 64, "effective_bits": 20},
    "tree": {"sign_slack_bits": 3},
    "4-ary tree": {"sign_slack_bits": 0, "arity": 4, "leaf_bits": 9},
    "8 rounds": {"sign_slack_bits": 5, "prg_rounds": 8, "leaf_bits": 7},
    "20 rounds": {"sign_slack_bits": 5, "prg_rounds": 20},
    "10 fractional bits": {"frac_bits": 10},
    "max": {"pooling": "max"},
    "max at once": {"pooling": "max", "separable_pooling": False},
}


# What differs by a number alone from a setting that is not among these is slow.
_LONG = (
    "24 bits",
    "28 bits",
    "64 bits",
    "4-ary tree",
    "8 rounds",
    "20 rounds",
    "10 fractional bits",
)


def of(*names):
    """A test for each of these settings."""
    marked = [pytest.param(n, marks=pytest.mark.slow if n in _LONG else ()) for n in names]
    return pytest.mark.parametrize("name", marked)


@of(*SETTINGS)
def test_logits_are_the_networks(name):
    program = make_program(**SETTINGS[name])
    images = pictures(1, seed=5)
    logits, trace = program.run(images)
    apply_fn, params = network(SETTINGS[name].get("pooling", "avg"))
    wanted = np.asarray(apply_fn(params, images))
    assert logits.dtype == np.float32 and logits.shape == wanted.shape
    coarse = 0.03 if program.config.ring_bits == 24 else 0.01
    np.testing.assert_allclose(logits, wanted, atol=coarse * np.abs(wanted).max())
    np.testing.assert_allclose(
        program.plaintext(images), wanted, atol=coarse * np.abs(wanted).max()
    )
    assert trace.round_trips == program.circuit.plan.n_levels + 1


@of("default", "tree", "max", "64 bits", "24 bits")
def test_every_layer_is_the_fixed_point_evaluation(name, monkeypatch):
    """Each gate's opened result against integers in the clear, fed with the same inputs."""
    program = make_program(**SETTINGS[name])
    circuit, images = program.circuit, pictures(1, seed=6)
    masked = {}
    original = fss._gates_model_owner

    def watched(circuit, segment, number, packed, keys, streams, sources, meanwhile):
        bits = yield from original(
            circuit, segment, number, packed, keys, streams, sources, meanwhile
        )
        for gate in segment.gates:
            words = circuit.joined(*sources[gate.out]).reshape(gate.out.shape)
            masked[gate] = (number, words)
        return bits

    monkeypatch.setattr(fss, "_gates_model_owner", watched)
    program.run(images)
    seed = program._driver.states[DATA_OWNER].seed
    opened = {}
    with ring.x64():
        for gate, (number, words) in masked.items():
            rho = masks.source_mask(circuit, seed, number, gate.out, "")
            opened[gate] = np.asarray(ring.signed(words - rho, circuit.n_bits), np.int64)
    assert set(opened) == set(circuit.plan.gates)
    for gate in circuit.plan.gates:
        others = {other: value for other, value in opened.items() if other is not gate}
        results, _ = fixed_point_values(
            circuit, network(SETTINGS[name].get("pooling", "avg"))[1], images, known=others
        )
        wanted = results[circuit.index[gate]]
        spec = circuit.specs[gate]
        window = max(1, (1 << spec.slack_bits) >> 1 if spec.compares else 1)
        error = np.abs(opened[gate] - wanted)
        assert error.max() <= window, (gate.name, error.max())


def test_batches():
    images = pictures(3, seed=7)
    program = make_program()
    apply_fn, params = network()
    logits, _ = program.run(images)
    np.testing.assert_allclose(logits, apply_fn(params, images), atol=0.01)
    assert program.batch_size == 1


@of("default", "tree", "max", "24 bits")
def test_declared_costs_are_the_real_ones(name):
    program = make_program(**SETTINGS[name])
    offline = program.prepare()
    _, online = program.run(pictures(1))
    cost = program.circuit.cost()
    assert online.round_trips == cost.round_trips
    assert online.bytes_sent == cost.online_bytes
    for party, n_bytes in cost.key_bytes.items():
        got = [m for m in offline.messages if m.sender == CRYPTO_PROVIDER and m.receiver == party]
        assert sum(message.n_bytes for message in got) == n_bytes
    sent = [m for m in offline.messages if m.sender == DATA_OWNER]
    assert sum(message.n_bytes for message in sent) == cost.client_bytes


def test_latency_is_paid_once_a_layer():
    program = make_program()
    _, here = program.run(pictures(1))
    _, far = program.run(pictures(1), latency_s=100.0, bandwidth_bps=1e9)
    assert far.seconds == pytest.approx(200.0 * here.round_trips, rel=0.01)


# --- single use


def started(circuit, params, batch=1):
    """A driver after set-up, with keys 0 and 1."""
    driver = LocalDriver(
        {
            DATA_OWNER: lambda: fss.data_owner(circuit),
            MODEL_OWNER: lambda: fss.model_owner(circuit, params),
            CRYPTO_PROVIDER: lambda: fss.provider(circuit),
        }
    )
    driver.run(
        {
            DATA_OWNER: fss.set_up_data_owner,
            MODEL_OWNER: fss.set_up_model_owner,
            CRYPTO_PROVIDER: fss.set_up_provider,
        }
    )
    prepare(driver, (0, 1))
    return driver


def prepare(driver, numbers):
    return driver.run(
        {
            DATA_OWNER: functools.partial(fss.prepare_data_owner, numbers=numbers),
            MODEL_OWNER: functools.partial(fss.prepare_model_owner, numbers=numbers),
            CRYPTO_PROVIDER: functools.partial(fss.prepare_provider, numbers=numbers),
        }
    )


def inference_programs(images, streamed=False):
    return {
        DATA_OWNER: functools.partial(fss.infer_data_owner, image=images, streamed=streamed),
        MODEL_OWNER: functools.partial(fss.infer_model_owner, streamed=streamed),
        CRYPTO_PROVIDER: functools.partial(fss.infer_provider, streamed=streamed),
    }


def test_keys_run_out_and_are_never_dealt_twice():
    circuit, params = make_program().circuit, network()[1]
    driver = started(circuit, params)
    images = pictures(1)
    first = driver.run(inference_programs(images))[0][DATA_OWNER].outputs[0]
    second = driver.run(inference_programs(images))[0][DATA_OWNER].outputs[0]
    np.testing.assert_allclose(first, second, atol=0.01)
    with pytest.raises(ProtocolError, match="no key is left"):
        driver.run(inference_programs(images))
    with pytest.raises(ProtocolError, match="key 1"):
        prepare(driver, (1,))
    assert driver.states[CRYPTO_PROVIDER].ledger.next() == 2
    streamed = driver.run(inference_programs(images, streamed=True))[0][DATA_OWNER].outputs[0]
    np.testing.assert_allclose(first, streamed, atol=0.01)


def test_a_failed_run_burns_its_key(monkeypatch):
    circuit, params = make_program().circuit, network()[1]
    driver = started(circuit, params)

    def dies(state, streamed=False):
        steps = fss.infer_model_owner(state, streamed)
        event = steps.send(None)
        for _ in range(6):
            event = steps.send((yield event))
        raise RuntimeError("power cut")

    programs = inference_programs(pictures(1))
    with pytest.raises(RuntimeError, match="power cut"):
        driver.run(programs | {MODEL_OWNER: dies})
    stores = [driver.states[party].store for party in (DATA_OWNER, MODEL_OWNER)]
    assert [store.available() for store in stores] == [1, 1]
    driver.run(programs)
    assert [store.available() for store in stores] == [0, 0]


def test_a_seed_serves_one_session_and_a_number_one_key():
    """With the same ρ under two matrices B, the model owner could solve for ρ, hence the image."""
    circuit, params = make_program().circuit, network()[1]
    driver = started(circuit, params)
    driver.states[MODEL_OWNER] = fss.model_owner(circuit, params)
    driver.states[CRYPTO_PROVIDER] = fss.provider(circuit)
    with pytest.raises(ProtocolError, match="set up already"):
        driver.run(
            {
                DATA_OWNER: fss.set_up_data_owner,
                MODEL_OWNER: fss.set_up_model_owner,
                CRYPTO_PROVIDER: fss.set_up_provider,
            }
        )
    steps = fss.prepare_data_owner(driver.states[DATA_OWNER], (0,))
    with pytest.raises(ProtocolError, match="key 0 was made before"):
        steps.send(None)


def test_outputs_that_do_not_depend_on_the_image():
    def apply_fn(params, x):
        return {"logits": x @ params, "weights": params.sum(0), "one": jnp.ones(2)}

    params = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    images = pictures(2).reshape(2, -1)[:, :6]
    program = inference.encrypt(apply_fn, params, images[:1], calibration=images)
    found, _ = program.run(images[:1])
    for name, wanted in apply_fn(params, images[:1]).items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-3)


def test_a_replayed_opening_is_refused():
    """Whoever sends the model owner an old key number is told so; nothing is computed with it."""
    circuit, params = make_program().circuit, network()[1]
    driver = started(circuit, params)
    driver.run(inference_programs(pictures(1)))
    steps = fss.infer_model_owner(driver.states[MODEL_OWNER])
    event = steps.send(None)
    while not isinstance(event, Receive):
        event = steps.send(None)
    with pytest.raises(ProtocolError, match="key 0"):
        steps.send({"number": np.uint64(0), "image": np.zeros(SIDE * SIDE, np.uint32)})


@pytest.mark.parametrize(
    "image,message",
    (
        (np.zeros((1, SIDE, SIDE, 3), np.float32), "shape"),
        (np.full((1, SIDE, SIDE, 1), np.nan, np.float32), "finite"),
        (np.full((1, SIDE, SIDE, 1), 1e4, np.float32), "calibrated"),
    ),
)
def test_images_that_do_not_fit_are_refused(image, message):
    with pytest.raises(ProtocolError, match=message):
        make_program().run(image)


def test_ranges_are_checked_in_the_clear():
    program = make_program()
    assert program.check_range(pictures(2)) == []
    found = program.check_range(30 * pictures(2))
    assert (found and "Conv" in str(found[0])) or "relu" in str(found[0])
    assert all(overflow.reached >= overflow.limit for overflow in found)
    wider = inference.calibrate(program, 30 * pictures(2))
    assert wider.check_range(30 * pictures(2)) == []


@pytest.mark.parametrize("bad", (np.nan, np.inf))
def test_what_is_not_finite_is_told_in_one_line(bad):
    apply_fn, params = network()
    images = pictures(2)
    with pytest.raises(ConfigError, match="not finite"):
        make_program().check_range(images + np.float32(bad))
    with pytest.raises(ConfigError, match="no image to check"):
        make_program().check_range(images[:0])
    with pytest.raises(ProtocolError, match="images of shape"):
        make_program().check_range(images[:, 1:])
    broken = jax.tree.map(lambda leaf: leaf + np.float32(bad), params)
    with pytest.raises(ConfigError, match="not finite"):
        inference.encrypt(apply_fn, broken, images[:1], calibration=images)


def test_a_refused_image_is_not_described_to_the_others():
    image = np.full((1, SIDE, SIDE, 1), 12345.0, np.float32)
    with pytest.raises(ProtocolError) as refused:
        make_program().run(image)
    assert "12345" not in str(refused.value)


def test_only_the_next_keys_are_held_expanded():
    program = make_program(effective_bits=17)
    program.prepare(4)
    client = program._driver.states[DATA_OWNER]
    assert sorted(client.ready) == [0, 1]
    for _ in range(3):
        program.run(pictures(1))
    assert program._driver.states[DATA_OWNER].ready == {}


def test_a_predicted_overflow_is_a_warning_with_its_layer():
    apply_fn, params = network()
    images = pictures(4)
    config = MpcConfig(effective_bits=8, frac_bits=12, sign_slack_bits=1)
    with pytest.warns(UserWarning, match="overflow in layer .*: reaches"):
        inference.encrypt(apply_fn, params, images[:1], calibration=images, config=config)


# --- secrecy


def test_the_audit_of_a_run_finds_every_message_masked():
    circuit, params = make_program(pooling="max", sign_slack_bits=5).circuit, network("max")[1]
    driver, transcript = started(circuit, params), Transcript()
    programs = inference_programs(pictures(1), streamed=True)
    driver.run({name: transcript.recorded(name, program) for name, program in programs.items()})
    lines = transcript.check_messages()
    assert len(lines) == len(transcript.entries) > 10
    assert not any(
        DATA_OWNER in entry.readers and "weights" in entry.what for entry in transcript.entries
    )
    provider = [e for e in transcript.entries if CRYPTO_PROVIDER in e.readers]
    assert {entry.what for entry in provider} == {"key number"}


def without(purpose, monkeypatch):
    """Sets one kind of mask to zero."""
    original = masks.stream

    def faulty(seed, wanted, index, number, n_words, kind=np.uint32):
        words = original(seed, wanted, index, number, n_words, kind)
        return np.zeros_like(words) if wanted == purpose else words

    monkeypatch.setattr(masks, "stream", faulty)


@pytest.mark.parametrize("purpose", (masks.RHO, masks.R, masks.SELECT, masks.COMPARE))
def test_the_audit_sees_a_mask_that_is_missing(purpose, monkeypatch):
    """With any of the masks set to zero, the bytes of some message give it away."""
    circuit, params = make_program(pooling="max", batch=16).circuit, network("max")[1]
    without(purpose, monkeypatch)
    driver, transcript = started(circuit, params), Transcript()
    programs = inference_programs(np.zeros((16, SIDE, SIDE, 1), np.float32), streamed=True)
    driver.run({name: transcript.recorded(name, program) for name, program in programs.items()})
    with pytest.raises(ProtocolError, match="do not look masked"):
        transcript.check_messages()


RUNS = 2000


def views(image, seed):
    """Messages to each party in 2,000 runs on one image, [runs, ...] each: the batch is the image
    over and over, and all its masks are independent. Range checks are of the batch, and left out.
    """
    params = network(seed=seed)[1]
    circuit = make_program(batch=RUNS).circuit
    driver, transcript = started(circuit, params), Transcript()
    batch = np.repeat(image, RUNS, axis=0)
    programs = inference_programs(batch)
    driver.run({name: transcript.recorded(name, program) for name, program in programs.items()})
    found = []
    for entry in transcript.entries:
        for leaf in jax.tree.leaves(entry.message):
            leaf = np.asarray(leaf)
            if leaf.ndim:
                if leaf.dtype == np.uint8:
                    leaf = np.unpackbits(leaf, bitorder="little")
                if leaf.size >= RUNS:
                    leaf = leaf[: leaf.size // RUNS * RUNS]
                    found.append((entry.readers, leaf.reshape(RUNS, -1)))
    return found


def test_views_tell_nothing_of_image_or_weights():
    """Each element of each message is uniform over 2,000 runs, for two images and two models; so
    are sums of neighbours. Hence nobody can tell the images, or the models, apart."""
    from scipy import stats

    for image, seed in ((pictures(1, 1), 0), (np.zeros_like(pictures(1)), 0), (pictures(1, 1), 9)):
        for readers, words in views(image, seed):
            n_bins = 2 if words.max() <= 1 else 16
            shift = 0 if n_bins == 2 else int(words.max()).bit_length() - 4
            for values in (words, words + np.roll(words, 1, axis=1)):
                if n_bins == 2:
                    values = values & 1
                bins = (values >> shift) & (n_bins - 1)
                counts = np.stack([(bins == i).sum(0) for i in range(n_bins)])
                worst = stats.chisquare(counts, axis=0).pvalue.min()
                if words.shape[1] > 1 or values is words:
                    assert worst > SURE, (readers, worst)


def test_the_provider_never_hears_of_image_or_weights():
    """All that reaches it are two seeds and key numbers; nothing of it depends on either."""
    circuit = make_program().circuit
    heard = []
    for image, seed in ((pictures(1, 1), 0), (pictures(1, 2), 3)):
        driver = started(circuit, network(seed=seed)[1])
        transcript = Transcript()
        programs = inference_programs(image, streamed=True)
        driver.run({n: transcript.recorded(n, p) for n, p in programs.items()})
        heard.append(
            [
                np.asarray(leaf).tolist()
                for e in transcript.entries
                if CRYPTO_PROVIDER in e.readers
                for leaf in jax.tree.leaves(e.message)
            ]
        )
    assert heard[0] == heard[1]


@pytest.mark.slow
def test_no_stream_is_drawn_twice_by_a_party(monkeypatch):
    """Not in a level of more than 256 gates either: a mask used twice gives a difference away."""
    images = pictures(2, seed=3)[:, :4, :4]
    images = np.tile(images, (1, 5, 5, 1))

    def apply_fn(params, x):
        return (x * params).max((1, 2))

    params = np.ones(1, np.float32)
    program = inference.encrypt(apply_fn, params, images[:1], calibration=images)
    circuit = program.circuit
    assert max(len(segment.values) for segment in circuit.segments) > 256
    drawn = []
    original = masks.stream

    def noted(seed, purpose, index, number, n_words, kind=np.uint32):
        drawn.append((seed.tobytes(), purpose, index, number))
        return original(seed, purpose, index, number, n_words, kind)

    driver = LocalDriver({CRYPTO_PROVIDER: lambda: fss.provider(circuit)})
    begun = dataclasses.replace(driver.states[CRYPTO_PROVIDER], epoch=epochs.Epoch(bytes(32)))
    provider = fss.with_seeds(begun, np.zeros(32, np.uint8), np.ones(32, np.uint8))
    monkeypatch.setattr(masks, "stream", noted)
    monkeypatch.setattr(gates, "deal", lambda *_: ({}, {}))  # what it draws is drawn before
    with ring.x64():
        for _ in fss_keys.deal(provider, 0):
            pass
    found = [entry for entry in drawn if entry[1] in (masks.R, masks.E)]
    assert len(found) > 256 and len(set(found)) == len(found)


def test_streams_never_repeat():
    """Purpose, gate and key number all enter the nonce."""
    seed = np.arange(32, dtype=np.uint8)
    found = {
        masks.stream(seed, purpose, index, number, 4).tobytes()
        for purpose in range(11)
        for index in (0, 1, 255, 256, 1 << 20)
        for number in (0, 1, 1 << 40)
    }
    assert len(found) == 11 * 5 * 3
