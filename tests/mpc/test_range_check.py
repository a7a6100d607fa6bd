"""Values out of range are flagged, to the data owner alone, and only they.

Protects the excess of every gate, exhaustively over small rings; the random sums; whole networks on
images that leave their ranges; the headroom that excludes a wrap around in the ring; and the noise
below the outputs.
"""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_fss import make_program, network, pictures, without
from test_gates import DOMAIN, draw_streams, make_spec

from primia_jax.config.sections import MpcConfig
from primia_jax.mpc import gates, inference, range_check, ring, worst_case
from primia_jax.mpc.plan import Gate, Plan, Public, Signed, Source
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, fss, masks
from primia_jax.mpc.scaling import Ranges
from primia_jax.mpc.transcript import Transcript, looks_uniform
from primia_jax.mpc.worst_case import missing_headroom

pytestmark = pytest.mark.usefixtures("compile_quickly")


# --- the excess of a gate


@pytest.mark.parametrize(
    "kind,n,k,t,slack",
    (
        ("relu", 8, 4, 2, 0),
        ("relu", 8, 4, 2, 1),
        ("relu", 8, 4, 0, 1),
        ("relu", 7, 3, 1, 0),
        ("rescale", 8, 4, 2, 0),
        ("rescale", 8, 3, 2, 0),
    ),
)
def test_the_excess_is_zero_exactly_where_the_gate_is_right(kind, n, k, t, slack):
    """For every word of the ring and every mask; values within the limit are never flagged."""
    with ring.x64():
        z, r = map(np.ravel, np.meshgrid(np.arange(-(1 << n) // 2, (1 << n) // 2), range(1 << n)))
        spec = make_spec(kind, z.size, n, t, k, k - 1 - slack)
        excess, y = run_checked_gate(spec, z, r)
        full = 1 << (n - t)
        value = ((z + r) >> t) - (r >> t)  # rounded by the mask's coin
        value = (value + full // 2) % full - full // 2
    if kind == "relu":
        limit, error, wanted = (1 << (k - 1 + t)) - (1 << (t + slack)), (1 << slack) >> 1, None
        wanted = np.maximum(value, 0)
    else:
        limit, error, wanted = (1 << (k - 2 + t)) - (1 << t), 0, value
    assert not excess[np.abs(z) <= limit].any()
    assert np.abs(y - wanted)[excess == 0].max() <= error
    assert (np.abs(y - wanted) > error).any(), "some values of the ring do leave the range"


def run_checked_gate(spec, z, r):
    """The excess of each element, modulo 2^g, and the gate's result."""
    rng = np.random.default_rng(0)
    rho, r = (
        jnp.asarray(words.astype(np.uint32))
        for words in (rng.integers(0, 1 << spec.ring_bits, z.size), r)
    )
    own = [draw_streams(spec, party, rng) for party in (0, 1)]
    tree, key = gates.deal(spec, r, rho, own[0], own[1], DOMAIN)
    masked = jnp.asarray(z).astype(np.uint32) + r
    y = gates.masked_operand(spec, masked)
    sent = ring.pack(y, spec.width)
    bits = [None, None]
    if spec.compares:
        compare = [tree.get("compare"), key["compare"]]
        bits = [gates.sign_share(spec, b, sent, own[b], compare[b], DOMAIN) for b in (0, 1)]
    select = [own[0].select, key["select"]]
    tops = [None, gates.top_of_operand(spec, masked)]
    tables = [gates.excess_table(spec, b, select[b]) for b in (0, 1)]
    shares, outs = (
        [np.asarray(of(b)) for b in (0, 1)]
        for of in (
            lambda b: gates.excess_share(spec, b, y, tops[b], tables[b], bits[b], bits[1 - b]),
            lambda b: gates.out_share(spec, b, sent, select[b], bits[b], bits[1 - b]),
        )
    )
    scale = gates.EXCESS_BITS - spec.excess_bits
    of_mask = np.asarray(gates.top_of_mask(spec, r)) << scale
    excess = shares[0] + shares[1] - of_mask
    assert not (excess & ((1 << scale) - 1)).any()
    opened = ring.signed(jnp.asarray(outs[0] + outs[1]) - rho, spec.ring_bits)
    return excess >> scale, np.asarray(opened).astype(np.int64)


@pytest.mark.parametrize("ring_bits,t,k,m", ((28, 8, 14, 8), (32, 12, 16, 8), (64, 34, 22, 9)))
@pytest.mark.parametrize("kind", ("relu", "rescale"))
def test_values_out_of_range_have_an_excess_in_every_ring(kind, ring_bits, t, k, m):
    with ring.x64():
        rng = np.random.default_rng(k)
        n = 2000
        spec = make_spec(kind, n, ring_bits, t, k, m)
        within = (1 << (k - 2 + t)) - (1 << (t + spec.slack_bits if kind == "relu" else t))
        far = rng.integers(3 << (k - 1 + t), 1 << (ring_bits - 2), n // 2)
        z = np.concatenate(
            [rng.integers(-within, within, n // 2), far * rng.choice((-1, 1), n // 2)]
        )
        word = ring.word_type(ring_bits)
        r, rho = (
            jnp.asarray(rng.integers(0, 1 << ring_bits, n, dtype=np.uint64).astype(word))
            for _ in range(2)
        )
        own = [draw_streams(spec, party, rng) for party in (0, 1)]
        _, key = gates.deal(spec, r, rho, own[0], own[1], DOMAIN)
        masked = jnp.asarray(z).astype(word) + r
        y, top = gates.masked_operand(spec, masked), gates.top_of_operand(spec, masked)
        sent = ring.pack(y, spec.width)
        bits = [None, None]
        if spec.compares:
            compare = [None, key["compare"]]
            bits = [gates.sign_share(spec, b, sent, own[b], compare[b], DOMAIN) for b in (0, 1)]
        total = sum(
            gates.excess_share(
                spec, b, y, (None, top)[b], gates.excess_table(spec, b, select), *bits[:: 1 - 2 * b]
            )
            for b, select in enumerate((own[0].select, key["select"]))
        )
        of_mask = gates.top_of_mask(spec, r) << np.uint8(8 - spec.excess_bits)
        excess = np.asarray(total - of_mask)
    assert not excess[: n // 2].any()
    assert excess[n // 2 :].all()


# --- the sums


def drawn(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


COEFFICIENTS = drawn(range_check.COEFFICIENTS)


@pytest.mark.parametrize("n", (1, 256, 257, 70_000))
def test_sums_are_linear_and_exact(n):
    a, b = drawn(n, 1), drawn(n, 2)
    found = [np.asarray(range_check.compress(v, COEFFICIENTS)) for v in (a, b, a + b)]
    np.testing.assert_array_equal(found[0] + found[1], found[2])
    first = COEFFICIENTS.reshape(-1, range_check.FAN_IN, range_check.SUMS)[0].astype(int)
    if n <= range_check.FAN_IN:
        np.testing.assert_array_equal(found[0], (a @ first[:n] % 256).astype(np.uint8))
    extreme = np.full(range_check.COEFFICIENTS, 255, np.uint8)
    of_extremes = np.asarray(range_check.compress(np.full(n, 255, np.uint8), extreme))
    assert len(set(of_extremes.tolist())) == 1 and (n > 256 or of_extremes[0] == n % 256)


@pytest.mark.parametrize("power", range(8))
def test_one_value_among_many_is_detected(power):
    """Also the one that is hardest: a multiple of 2^7, which half of all sums miss."""
    for seed in range(20):
        values = np.zeros(70_000, np.uint8)
        values[np.random.default_rng(seed).integers(len(values))] = 1 << power
        found = np.asarray(range_check.compress(values, drawn(range_check.COEFFICIENTS, seed)))
        assert found.any() and not (found % (1 << power)).any()


@pytest.mark.parametrize("excess", (0, 1, 4))
def test_an_answer_tells_the_flag_and_its_power_of_two(excess):
    """In range zeros; else uniform multiples of 2^v: nothing of which values, how many or where."""
    n = 300
    opened = []
    for seed in range(200):
        words = drawn(4 * n + range_check.SUMS * (3 + range_check.SUMS), seed)
        x0, top = words[:n], words[n : 2 * n]
        x1 = top - x0
        x1[seed % n : seed % n + 1] += np.uint8(excess)
        mask, out_mask = words[-64:-32], words[-32:]
        matrix = words[4 * n :][: range_check.SUMS**2]
        a = [np.asarray(range_check.compress(v, COEFFICIENTS)) for v in (x0, x1, top)]
        sigma = range_check.correction(mask, out_mask, matrix, a[2])
        answer = range_check.answer(a[1], a[0] + mask, matrix, sigma)
        opened.append(np.asarray(answer) - out_mask)
    opened = np.concatenate(opened)
    if not excess:
        assert not opened.any()
    else:
        assert not (opened % excess).any()
        assert looks_uniform(opened // excess, 256 // excess)


# --- whole networks


def weak_contrast(n, seed=0):
    """Images [n 8 8 1] that show little of what the layers can reach."""
    return np.float32(0.5) + np.float32(0.1) * (pictures(n, seed) - np.float32(0.5))


@functools.cache
def narrow_program(pooling="avg", **settings):
    """Calibrated on images of weak contrast, for images in [0, 1]."""
    apply_fn, params = network(pooling)
    config = MpcConfig(**settings)
    strong = {"params": jax.tree.map(lambda leaf: leaf * 2, params["params"])}
    ranges = inference.find_ranges(apply_fn, strong, weak_contrast(16), config, image_range=1.0)
    plan = inference.lower_network(apply_fn, strong, weak_contrast(1), config)
    return inference.SecureProgram(apply_fn, strong, plan, ranges, config)


KINDS = {
    "noise": lambda: pictures(1, 3),
    "inverted": lambda: 1 - pictures(1, 4),
    "extremes": lambda: np.round(pictures(1, 5)),
    "white": lambda: np.ones((1, 8, 8, 1), np.float32),
    "stripes": lambda: np.tile(np.float32([0, 1]), 32).reshape(1, 8, 8, 1),
}


@pytest.mark.parametrize("pooling", ("avg", "max"))
def test_images_out_of_range_are_flagged_and_others_never(pooling):
    """The first ReLU that leaves its range is always among the flagged layers. (A truncation alone
    is exact beyond its range by chance of the masks, and flagged exactly where it is not.)"""
    program = narrow_program(pooling)
    names = [*(gate.name for gate in program.circuit.plan.gates), "outputs"]
    assert program.circuit.detects
    flagged = 0
    for image in KINDS.values():
        beyond = [overflow.layer for overflow in program.check_range(image())]
        wrong = [layer for layer in beyond if "rescale" not in layer]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            program.run(image())
        assert [w.category for w in caught] == [inference.OutOfRangeWarning] * bool(
            program.out_of_range
        )
        assert bool(program.out_of_range) or not wrong
        if wrong:
            flagged += 1
            assert set(program.out_of_range) <= set(names)
            assert min(wrong, key=names.index) in program.out_of_range
    assert flagged >= 2
    for seed in range(10):
        program.run(weak_contrast(1, 100 + seed))
        assert program.out_of_range == ()


def test_where_the_ring_has_no_headroom_nothing_is_claimed():
    for settings in ({"headroom_bits": 0}, {"ring_bits": 24, "effective_bits": 12}):
        program = make_program(**settings)
        assert not program.circuit.checked_gates and not program.circuit.detects
        program.run(pictures(1))
        assert program.out_of_range is None


def test_headroom_that_does_not_hold_the_worst_case_claims_nothing():
    """One bit of headroom: what wraps around twice comes back into its range."""
    program = make_program(headroom_bits=1)
    assert program.circuit.checked_gates and program.circuit.unproven
    program.run(pictures(1))
    assert program.out_of_range is None


def test_a_layer_that_cannot_leave_its_range_needs_no_check():
    """An image at the limit everywhere is computed correctly; nothing is unknown."""

    def apply_fn(weight, x):
        return jnp.maximum(x * weight, 0).sum((1, 2))

    images = pictures(16)
    program = inference.encrypt(apply_fn, np.float32([0.7]), images[:1], calibration=images)
    circuit = program.circuit
    assert circuit.checked_gates == () and circuit.detects
    assert max(missing_headroom(circuit, np.float32([0.7]))) <= 0
    extreme = np.full((1, 8, 8, 1), circuit.image_limit, np.float32)
    extreme[:, ::2] *= -1
    found, _ = program.run(extreme)
    np.testing.assert_allclose(found, apply_fn(np.float32([0.7]), extreme), rtol=1e-3)
    assert program.out_of_range == ()


def test_a_diagnosis_says_what_is_known_of_its_range():
    of = functools.partial(fss.Diagnosis, ())
    assert (of(None).in_range, of(()).in_range, of(("relu",)).in_range) == (None, True, False)


# --- headroom


@pytest.mark.parametrize("pooling", ("avg", "max"))
def test_no_image_in_range_reaches_beyond_the_worst_case(pooling):
    """Random images, and those that push one value of the first layer as far as they can."""
    program = narrow_program(pooling)
    circuit, params = program.circuit, program._params
    assert max(missing_headroom(circuit, params)) <= 0
    assert 0 < max(program.ranges.headroom) <= program.config.headroom_bits
    limit = circuit.image_limit
    kernel = np.asarray(params["params"]["Conv_0"]["kernel"])[..., 0, :]
    first = circuit.scaling.gates[0]
    for channel in range(kernel.shape[-1]):
        image = np.full((1, 8, 8, 1), -limit, np.float32)
        image[0, 2:5, 2:5, 0] = np.sign(kernel[..., channel]) * limit
        reached = program._apply_fn and inference.plan_ranges(circuit.plan, params, image)
        words = reached.gates[0] * first.unit
        assert words < 2.0 ** (circuit.n_bits - 1)
    # The excess of that layer holds it, too, so that it cannot be taken for 0.
    spec = circuit.specs[circuit.plan.gates[0]]
    assert words < 2.0 ** (spec.truncated_bits + spec.width + spec.excess_bits - 1)


def test_negative_coefficients_count_with_their_magnitude():
    """A public map that subtracts neighbours reaches twice as far as one value."""
    image, out = Source((1, 2), "image"), Source((1, 1), "relu")
    subtract = Signed(lambda x: x[:, :1] - x[:, 1:], lambda x: x[:, :1] + x[:, 1:])
    gate = Gate("relu", Public((image,), subtract, (1, 1)), out, 0, "relu")
    plan = Plan(image, (gate,), (out,), None)
    found = worst_case._worst(plan)({}, np.asarray([1.0, 3.0]), np.asarray([-1.0, 0.0]), [])
    assert [float(reach) for reach in found] == [2.0, 3.0]


def test_logits_have_four_bits_of_headroom():
    for settings in ({}, {"headroom_bits": 0}, {"ring_bits": 24, "effective_bits": 12}):
        program = make_program(**settings)
        (unit,) = program.circuit.scaling.outputs
        reach = program.config.margin * program.ranges.outputs[0] * unit
        assert reach * 2**4 <= 2.0 ** (program.circuit.n_bits - 1)


# --- what is published, and what outputs tell


def test_published_ranges_are_powers_of_two():
    program = make_program()
    ranges = program.ranges
    for value in (ranges.image, *ranges.gates, *ranges.spreads, *ranges.products, *ranges.outputs):
        assert value == 0 or math.log2(value).is_integer()
    exact = Ranges(0.7, (0.0, 3.0), (0.1, 0.9), (5.0,), (4.0,))
    assert exact.rounded() == Ranges(1.0, (0.0, 4.0), (0.125, 1.0), (8.0,), (4.0,))
    other = network()[1]
    scaled = jax.tree.map(lambda leaf: leaf * np.float32(1.001), other)
    found = inference.find_ranges(network()[0], scaled, pictures(16), program.config)
    assert found == ranges, "a thousandth more moves nothing that is published"


def test_outputs_have_no_exact_low_bits(monkeypatch):
    """Differences of the words that the data owner opens share no factor of two, and the words
    modulo it no value: both told weights' exponents and bits of the biases."""
    program = make_program()
    words, original = [], fss._opened

    def watched(*arguments):
        words.append(np.asarray(original(*arguments)).astype(np.int64))
        return original(*arguments)

    monkeypatch.setattr(fss, "_opened", watched)
    (bits,) = program.circuit.scaling.noise_bits
    assert bits >= max(int(np.max(shift)) for _, shift in states(program)[MODEL_OWNER].weights)
    for seed in range(40):
        program.run(pictures(1, seed))
    low = np.stack(words) % (1 << bits)
    for power in (1, 2):
        assert (np.unique(low % (1 << power), axis=0).shape[0]) > 1
        for channel in low.T:
            assert len(set((channel % (1 << power)).tolist())) == 1 << power


def states(program):
    if program._driver is None:
        program.set_up()
    return program._driver.states


def test_noise_is_small_without_sharp_ends_and_hides_low_bits():
    program = make_program(batch=2000)
    circuit = program.circuit
    (bits,), (unit,) = circuit.scaling.noise_bits, circuit.scaling.outputs
    with ring.x64():
        noise = masks.output_noise(circuit, drawn(32), 0, 0)
        signed = np.asarray(ring.signed(noise, circuit.n_bits)).astype(np.int64)
    half = 1 << (bits - 1)
    assert -half <= signed.min() and signed.max() < half
    assert looks_uniform(((signed + half) % half >> (bits - 9)).astype(np.uint8))
    # Uniform noise has its extremes within a thousandth of its ends: these gave the exact words.
    assert signed.max() - signed.min() < 1.98 * half
    assert abs(signed.mean()) < 0.05 * half and 0.3 < signed.std() / half < 0.4
    # The documented bound: an output moves by 2^-16 of its range, a probability by half of that.
    limit = program.config.margin * program.ranges.outputs[0]
    assert half / unit <= limit / 2**program.config.output_bits
    logits = np.random.default_rng(0).normal(size=(1000, 3)) * limit
    moved = logits + np.random.default_rng(1).choice((-1, 1), logits.shape) * half / unit
    change = np.abs(jax.nn.softmax(logits) - jax.nn.softmax(moved)).max()
    assert change <= limit / 2 ** (program.config.output_bits + 1) + 1e-6


def test_weights_that_cancel_are_a_warning_to_their_owner():
    """Their channel's factor of two exceeds the noise: 1000 (x - x') of two pixels much alike."""
    rows = np.asarray([[1, 0.3], [-1, 0.2]], np.float32)
    base = np.random.default_rng(0).uniform(-1, 1, (64, 1))
    near = np.float32(base + 1e-5 * np.random.default_rng(1).uniform(-1, 1, (64, 2)))

    def program(gain):
        params = {"a": rows * np.float32([gain, 1])}
        return inference.encrypt(lambda p, x: x @ p["a"], params, near[:1], calibration=near)

    with pytest.warns(UserWarning, match="weights of an output nearly cancel") as caught:
        program(1e6).set_up()
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program(1.0).set_up()


def test_a_large_output_is_flagged(monkeypatch):
    program = make_program()
    limit = program.circuit.output_limit
    for value, flagged in ((limit - 1, ()), (limit, ("outputs",)), (-limit, ("outputs",))):
        with monkeypatch.context() as patched, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patched.setattr(fss, "_opened", lambda *_, value=value: np.full((1, 3), value))
            program.run(pictures(1))
        assert program.out_of_range == flagged


# --- secrecy


def test_noise_is_of_the_providers_seed_in_this_epoch(monkeypatch):
    """Of its own seed, the data owner would subtract it."""
    program = make_program()
    party = states(program)[CRYPTO_PROVIDER]
    seeds, original = [], masks.output_noise

    def watched(circuit, seed, *more):
        seeds.append(np.asarray(seed).tobytes())
        return original(circuit, seed, *more)

    monkeypatch.setattr(masks, "output_noise", watched)
    program.prepare(1)
    assert set(seeds) == {party.epoch.seed(party.root).tobytes()}
    assert seeds[0] != np.asarray(party.root).tobytes()


def test_masks_of_a_check_are_unrelated():
    circuit, seed = narrow_program().circuit, drawn(32)
    of_numbers = [np.asarray(masks.check_masks(circuit, seed, number)) for number in (0, 1)]
    drawn_masks = np.concatenate([made.reshape(-1, made.shape[-1]) for made in of_numbers])
    assert len(drawn_masks) == 4 * len(circuit.checked_gates) > 4
    for i, one in enumerate(drawn_masks):
        for other in drawn_masks[:i]:
            assert np.mean(np.asarray(one) == np.asarray(other)) < 0.3


def test_the_model_owner_cannot_open_flags(monkeypatch):
    """All that it receives and sends looks uniform, in range or not. Without μ the requests would
    be multiples of a power of two, and without ω the answers 0 in range."""
    for patched in (False, True):
        if patched:
            without(masks.CHECK_MASK, monkeypatch)
        for image in (weak_contrast(1), pictures(1, 3)):
            answers, requests = [], []
            for _ in range(8):
                for entry in transcript_of(narrow_program(), image):
                    if "range checks" in entry.what:
                        of_owner = entry.sender == MODEL_OWNER
                        (answers if of_owner else requests).append(np.asarray(entry.message))
            assert looks_uniform(np.concatenate(requests)) != patched
            if not patched:
                assert looks_uniform(np.concatenate(answers))
            elif not narrow_program().out_of_range:
                assert not np.concatenate(answers).any()


def test_a_matrix_of_zeros_would_raise_no_flag(monkeypatch):
    without(masks.MIX, monkeypatch)
    program = narrow_program()
    program.run(pictures(1, 3))
    assert program.check_range(pictures(1, 3)) and program.out_of_range == ()


def test_coefficients_are_fresh_in_each_run():
    seeds = {masks.check_seed(drawn(32), number).tobytes() for number in range(20)}
    assert len(seeds) == 20


def transcript_of(program, image):
    """Messages of one run; `program.out_of_range` is that of the run."""
    if program._driver is None or not program.protocol.available(states(program)[DATA_OWNER]):
        program.prepare(8)
    transcript = Transcript()
    programs = program.protocol.programs(image)
    recorded = {name: transcript.recorded(name, steps) for name, steps in programs.items()}
    reports, _ = program._driver.run(recorded)
    program.out_of_range = reports[DATA_OWNER].out_of_range
    return transcript.entries
