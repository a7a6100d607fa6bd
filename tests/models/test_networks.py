"""The networks have the promised shapes, variables and primitives, and they learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from primia_jax import models
from primia_jax.config.sections import ModelConfig
from primia_jax.errors import ConfigError
from primia_jax.models import resnet

KEY = jax.random.key(7)
SMALL = ModelConfig(name="simple", width=8)


def images(n, side, channels, seed=0):
    rng = np.random.Generator(np.random.Philox(seed))
    return jnp.asarray(rng.normal(size=(n, side, side, channels)), jnp.float32)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "name, norm, channels, parameters",
    [
        # As torchvision counts them with 1000 classes and three channels.
        ("resnet18", "batch", 3, 11_689_512),
        ("resnet34", "batch", 3, 21_797_672),
        ("vgg16", "none", 3, 138_357_544),
        ("vgg16", "batch", 3, 138_365_992),
    ],
)
def test_parameters_are_torchvisions(name, norm, channels, parameters):
    module = models.build(ModelConfig(name=name, norm=norm, channels=channels), 1000)
    x = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    shapes = jax.eval_shape(module.init, KEY, x)
    assert size(shapes["params"]) == parameters


@pytest.mark.parametrize(
    "settings, side",
    [
        ({"name": "resnet18", "stem": "small", "norm": "frozen", "pooling": "avg"}, 9),
        ({"name": "resnet18", "norm": "group", "channels": 3}, 8),
        ({"name": "vgg16", "norm": "none", "pooling": "avg"}, 32),
        ({"name": "simple", "norm": "batch"}, 8),
        ({"name": "simple", "norm": "none", "channels": 3}, 13),
        ({"name": "unet", "norm": "group", "pooling": "avg"}, 8),
    ],
    ids=str,
)
def test_settings_combine(settings, side):
    """Smallest images, odd sides: finite logits, and moments exactly where the norm has them."""
    config = ModelConfig(width=4, **settings)
    module = models.build(config, 3)
    if config.name == "resnet18":  # two stages show what four would, and compile sooner
        module = module.clone(blocks=(1, 1))
    variables = models.init(module, KEY, side, config.channels)
    assert ("batch_stats" in variables) == (config.norm in ("batch", "frozen"))
    x = images(2, side, config.channels)

    @jax.jit
    def both(variables, x):
        return (
            module.apply(variables, x, train=False),
            module.apply(variables, x, train=True, mutable=["batch_stats"]),
        )

    logits, (train_logits, new) = both(variables, x)
    pixels = (side, side) if config.name == "unet" else ()
    for out in (logits, train_logits):
        assert out.shape == (2, *pixels, 3) and out.dtype == jnp.float32
        assert np.all(np.isfinite(out))
    moved = [
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(variables.get("batch_stats", {})))
    ]
    assert all(moved) if config.norm == "batch" else not any(moved)


def test_initial_values_follow_the_key_alone():
    module = models.build(SMALL, 3)
    first, again = (models.init(module, KEY, 16, 1) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = models.init(module, jax.random.key(8), 16, 1)
    assert np.any(first["params"]["conv1"]["kernel"] != other["params"]["conv1"]["kernel"])
    kernels = jax.tree.leaves(first["params"])
    assert len({float(k.ravel()[0]) for k in kernels if k.ndim == 4}) == 3, "layers differ"
    # He et al.: a normal distribution of variance 2 / (9 · output channels).
    wide = models.init(models.build(dataclasses.replace(SMALL, width=64), 3), KEY, 16, 1)
    spread = float(jnp.std(wide["params"]["conv3"]["kernel"]))
    assert spread == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.02)


def test_kinds_of_convolution_give_one_network():
    outs = []
    for kind in ("xla", "im2col", "auto"):
        module = resnet.ResNet(blocks=(1, 1), n_classes=3, width=4, convolution=kind)
        variables = models.init(module, KEY, 32, 1)
        outs.append(jax.jit(module.apply)(variables, images(2, 32, 1)))
    np.testing.assert_allclose(outs[1], outs[0], atol=1e-5)
    np.testing.assert_allclose(outs[2], outs[0], atol=1e-5)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        inner = [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
        yield from [equation.primitive.name] if not inner else []
        for value in inner:
            yield from primitives(getattr(value, "jaxpr", value))


@pytest.mark.parametrize(
    "settings", [{"name": "resnet18"}, {"name": "vgg16"}, {"name": "simple"}], ids=str
)
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_inference_traces_to_plain_primitives(settings, pooling):
    """Encrypted inference can lower these and no others."""
    config = ModelConfig(width=4, convolution="xla", pooling=pooling, **settings)
    module = models.build(config, 3)
    x = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(module.init, KEY, x)
    traced = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    allowed = {
        "add", "broadcast_in_dim", "conv_general_dilated", "div", "dot_general", "max", "mul",
        "reduce_sum", "reduce_window_max", "reduce_window_sum", "reduce_window", "reshape",
        "rsqrt", "sub", "transpose",
    }  # fmt: skip
    assert set(primitives(traced.jaxpr)) <= allowed


def test_simple_network_learns():
    """Bright or dark squares: a few steps suffice."""
    module = models.build(SMALL, 2)
    variables = models.init(module, KEY, 16, 1)
    optimizer = optax.adam(1e-2)
    labels = jnp.arange(16) % 2
    x = images(16, 16, 1) + 2 * (labels * 2 - 1)[:, None, None, None]

    @jax.jit
    def step(variables, state):
        def loss(params):
            logits, new = module.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state, value

    state, losses = optimizer.init(variables["params"]), []
    for _ in range(15):
        variables, state, value = step(variables, state)
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]


def test_dropout_acts_only_with_a_key():
    module = models.build(ModelConfig(name="vgg16", norm="none", width=4), 3)
    x = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(module.init, KEY, x)

    def draws(train, rngs):
        apply = lambda v, x: module.apply(v, x, train=train, rngs=rngs)  # noqa: E731
        return "random_bits" in str(jax.make_jaxpr(apply)(variables, x))

    assert draws(True, {"dropout": KEY})
    assert not draws(True, None)
    assert not draws(False, {"dropout": KEY})


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"config\.model\.norm"):
        models.build(ModelConfig(name="resnet18", norm="none"), 3)
    module = models.build(ModelConfig(name="vgg16", width=4), 3)
    with pytest.raises(ConfigError, match=r"config\.data\.image_size = 31"):
        models.init(module, KEY, 31, 1)
