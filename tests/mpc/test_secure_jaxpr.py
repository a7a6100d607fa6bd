"""Networks as plans: what they compute, how many round trips they take, what they promise.

Protects the lowering: a plan evaluated on reals gives what the network gives; no product of the
model owner's reads another; parties that know only the shapes of the parameters get the same plan;
and what cannot run encrypted is refused with the layer and the line.

Axis letters: n images, h/w rows and columns, c channels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import plan_reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from primia_jax import models
from primia_jax.config.sections import ModelConfig
from primia_jax.errors import ProtocolError
from primia_jax.mpc import plan as ir
from primia_jax.mpc.secure_jaxpr import lower

TOLERANCE = 1e-5


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def values(shapes: Any, seed: int = 0) -> Any:
    """Parameters of these shapes: kernels that keep the size of what they see, positive others."""
    rng = np.random.Generator(np.random.Philox(seed))

    def leaf(shape: Any) -> np.ndarray:
        if len(shape.shape) < 2:
            return rng.uniform(0.5, 1.5, shape.shape).astype(shape.dtype)
        fan_in = np.prod(shape.shape[:-1])
        return (rng.normal(size=shape.shape) / np.sqrt(fan_in)).astype(shape.dtype)

    return jax.tree.map(leaf, shapes)


def lowered(
    apply_fn: Any,
    params: Any,
    shape: tuple[int, ...],
    separable: bool = True,
    products: bool = True,
) -> ir.Plan:
    """The plan, after it was held against the network itself and what all plans promise."""
    rng = np.random.Generator(np.random.Philox(1))
    image = rng.normal(size=shape).astype(np.float32)
    plan = lower(apply_fn, params, image, separable_pooling=separable)
    plan_reference.check(plan, products)
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    blind = lower(apply_fn, shapes_of(params), spec, separable_pooling=separable)
    assert plan_reference.structure(plan) == plan_reference.structure(blind)
    expected = jax.jit(apply_fn, compiler_options=plan_reference.QUICK)(params, image)
    found = plan_reference.evaluate(plan, params, image)
    assert plan.out_tree == jax.tree.structure(expected)
    for e, f, dtype in zip(jax.tree.leaves(expected), jax.tree.leaves(found), plan.out_dtypes):
        assert e.shape == f.shape and e.dtype == dtype
        scale = np.abs(np.asarray(e, np.float64)).max(initial=1e-3)
        np.testing.assert_allclose(f, np.asarray(e, np.float64), rtol=0, atol=TOLERANCE * scale)
    return plan


def lowered_module(
    module: nn.Module, shape: tuple[int, ...] = (2, 8, 8, 3), separable: bool = True
) -> ir.Plan:
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = values(jax.eval_shape(module.init, jax.random.key(0), spec))
    return lowered(module.apply, params, shape, separable)


def network(body: Callable[..., Any]) -> nn.Module:
    """A module that computes body(x), which may make layers."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return body(x)

    return Network()


def kinds(plan: ir.Plan) -> list[str]:
    return [gate.kind for gate in plan.gates]


def n_products(plan: ir.Plan) -> int:
    roots = [gate.operand for gate in plan.gates] + list(plan.outputs)
    return sum(isinstance(node, ir.Private) for node in ir.reachable(roots))


def norm(name: str | None = None) -> nn.Module:
    return nn.BatchNorm(use_running_average=True, name=name)


# --- the networks of this project


@pytest.mark.parametrize(
    ("config", "separable", "levels"),
    [
        ({"name": "resnet18"}, True, 20),
        ({"name": "resnet18", "norm": "frozen"}, False, 20),
        ({"name": "resnet18", "pooling": "avg"}, True, 17),
        ({"name": "resnet18", "stem": "small"}, True, 17),
        ({"name": "resnet34", "pooling": "avg"}, True, 33),
        ({"name": "resnet34", "stem": "small"}, True, 33),
        ({"name": "resnet34"}, True, 36),
        ({"name": "simple"}, True, 9),
        ({"name": "simple"}, False, 9),
        ({"name": "simple", "pooling": "avg", "norm": "none"}, True, 3),
        ({"name": "vgg16"}, True, 26),
        ({"name": "vgg16"}, False, 26),
        ({"name": "vgg16", "pooling": "avg", "norm": "batch"}, True, 16),
    ],
)
def test_networks_of_the_project(config: dict[str, Any], separable: bool, levels: int) -> None:
    module = models.build(ModelConfig(convolution="xla", width=4, **config), 3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    variables = values(jax.eval_shape(module.init, jax.random.key(0), image))

    def apply_fn(variables: Any, x: Any) -> Any:
        return module.apply(variables, x, train=False)

    plan = lowered(apply_fn, variables, (1, 32, 32, 1), separable, products=False)
    assert plan.n_levels == levels
    assert all(gate.source_line for gate in plan.gates)


def test_pooled_stem_of_resnet() -> None:
    """Rows, then columns with the ReLU among them: 1 rescaling, and as many comparisons as told."""
    module = models.build(ModelConfig(convolution="xla", width=4), 3)
    shape = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), shape)
    plan = lower(lambda v, x: module.apply(v, x), variables, shape)
    stem = [gate for gate in plan.gates if gate.level < 4]
    compared = sum(np.prod(gate.out.shape) for gate in stem if gate.kind == "relu")
    assert kinds(plan).count("rescale") == 1
    assert compared == 4 * (2 * 8 * 16 + 3 * 8 * 8)
    assert {"layer1_0", "layer4_1#2"} <= {gate.name for gate in plan.gates}
    # One product for each of the 20 convolutions, and the dense layer.
    assert n_products(plan) == 21


# --- layers of other networks


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"padding": "VALID"},
        {"padding": ((2, 0), (1, 3))},
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": ((2, 2), (1, 1))},
        {"feature_group_count": 3},
        {"feature_group_count": 3, "features": 3, "strides": (1, 2)},
        {"use_bias": False, "kernel_size": (1, 5)},
    ],
)
def test_convolutions(options: dict[str, Any]) -> None:
    options = {"features": 6, "kernel_size": (3, 3), **options}

    def body(x: Any) -> Any:
        x = nn.relu(norm()(nn.Conv(**options)(x)))
        return nn.Conv(2, (3, 3))(x)

    plan = lowered_module(network(body))
    assert kinds(plan) == ["relu"] and n_products(plan) == 2


def test_grouped_convolution_splits_by_channels_of_each_group() -> None:
    plan = lowered_module(nn.Conv(8, (3, 3), feature_group_count=2), (1, 5, 5, 12))
    (product,) = {n.product for n in ir.reachable(plan.outputs) if isinstance(n, ir.Private)}
    assert product.depth == 3 * 3 * 6


def test_transposed_convolution_and_other_layout() -> None:
    def apply_fn(kernel: Any, x: Any) -> Any:
        x = lax.transpose(x, (0, 3, 1, 2))
        x = lax.conv_general_dilated(
            x, kernel, (1, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NHWC")
        )
        return x * 2.0

    kernel = np.random.Generator(np.random.Philox(2)).normal(size=(4, 3, 3, 3)).astype(np.float32)
    lowered(apply_fn, kernel, (2, 6, 6, 3))
    lowered_module(nn.ConvTranspose(4, (3, 3), strides=(2, 2)))


def test_lenet() -> None:
    def body(x: Any) -> Any:
        for features in (4, 6):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(8)(x))
        x = nn.relu(nn.Dense(7)(x))
        return nn.Dense(3)(x)

    plan = lowered_module(network(body), (2, 20, 20, 1))
    assert kinds(plan) == ["relu"] * 4 and n_products(plan) == 5


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(
    ("window", "strides", "padding", "levels"),
    [
        ((2, 2), (2, 2), "VALID", 3),
        ((3, 3), (2, 2), "SAME", 4),
        ((3, 3), (1, 1), "SAME", 4),
        ((3, 2), (1, 1), "SAME", 3),
        ((1, 3), (1, 1), ((0, 0), (2, 0)), 2),
        ((8, 8), (8, 8), "VALID", 7),
    ],
)
def test_max_pooling(window: Any, strides: Any, padding: Any, levels: int, separable: bool) -> None:
    def body(x: Any) -> Any:
        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        return nn.Conv(2, (1, 1))(nn.max_pool(x, window, strides, padding))

    assert lowered_module(network(body), separable=separable).n_levels == levels


def test_average_pooling() -> None:
    def body(x: Any) -> Any:
        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        return [
            nn.Conv(2, (1, 1))(nn.avg_pool(x, window, strides, padding, count_include_pad=count))
            for count in (True, False)
            for window, strides, padding in (
                ((2, 2), (2, 2), "VALID"),
                ((3, 3), (2, 2), "SAME"),
                ((3, 3), (1, 1), "SAME"),
                ((1, 3), (1, 1), ((0, 0), (2, 0))),
                ((8, 8), (8, 8), "VALID"),
            )
        ]

    assert kinds(lowered_module(network(body))) == ["relu"]


def test_maximum_and_relu_in_either_order() -> None:
    def pooled(x: Any) -> Any:
        return nn.Dense(2)(nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2)))

    def rectified(x: Any) -> Any:
        return nn.Dense(2)(nn.relu(nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2))))

    first, second = lowered_module(network(pooled)), lowered_module(network(rectified))
    assert kinds(first) == kinds(second)
    assert [gate.out.shape for gate in first.gates] == [gate.out.shape for gate in second.gates]


def test_relu_beside_its_pool() -> None:
    """The plain ReLU runs too where something else reads it."""

    def body(x: Any) -> Any:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.max_pool(x, (2, 2), (2, 2)), x.mean((1, 2))

    plan = lowered_module(network(body))
    assert plan.n_levels == 3
    assert (2, 8, 8, 4) in {gate.out.shape for gate in plan.gates if gate.level == 0}


@pytest.mark.parametrize("rectify", [True, False])
def test_global_maximum(rectify: bool) -> None:
    def body(x: Any) -> Any:
        x = nn.Conv(4, (3, 3))(x)
        return nn.Dense(2)((nn.relu(x) if rectify else x).max((1, 2)))

    plan = lowered_module(network(body), (2, 6, 7, 3))
    assert plan.n_levels == 6
    assert plan_reference.structure(plan)


def test_max_pool_of_a_sum_and_of_the_image() -> None:
    def body(x: Any) -> Any:
        image = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = nn.Conv(3, (3, 3))(x) + x
        return nn.max_pool(x, (3, 3), (2, 2), "SAME") - image

    lowered_module(network(body))


def test_generic_windows() -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        window = ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 0), (1, 1), (0, 0)))
        dilated: dict[str, Any] = {"base_dilation": (1, 2, 1, 1), "window_dilation": (1, 1, 2, 1)}
        return (
            lax.reduce_window(x, 0.0, lax.max, *window),
            lax.reduce_window(x, jnp.inf, lax.min, *window),
            lax.reduce_window(x, -0.5, lax.max, *window),
            lax.reduce_window(x, 0.0, lax.add, *window, **dilated),
            lax.reduce_window(x, 1.0, lax.add, *window),
            lax.reduce_window(x, -jnp.inf, lax.max, *window, **dilated),
        )

    lowered(apply_fn, {}, (2, 7, 8, 2))


def test_residual_blocks_before_activation() -> None:
    """Sums of earlier layers are rescaled beside other gates: nothing adds up with depth."""
    n_blocks = 5

    def body(x: Any) -> Any:
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        for _ in range(n_blocks):
            y = nn.relu(norm()(x))
            y = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(y)))
            x = x + nn.Conv(4, (3, 3), use_bias=False)(y)
        return nn.Dense(3)(nn.relu(norm()(x)).mean((1, 2)))

    plan = lowered_module(network(body))
    assert plan.n_levels == 2 * n_blocks + 1
    assert n_products(plan) <= 4 * n_blocks + 2


@pytest.mark.parametrize("rectify", [True, False])
def test_dense_blocks_and_inception(rectify: bool) -> None:
    """Norms of concatenations fold into the layers before, whatever these are."""

    def body(x: Any) -> Any:
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(3):
            y = norm()(x)
            y = nn.relu(y) if rectify else y
            x = jnp.concatenate([x, nn.Conv(2, (3, 3))(y)], -1)
        branches = [nn.Conv(2, (k, k))(nn.relu(norm()(x))) for k in (1, 3)]
        branches.append(nn.max_pool(nn.relu(x), (3, 3), (1, 1), "SAME"))
        return nn.Dense(2)(nn.relu(jnp.concatenate(branches, -1)).mean((1, 2)))

    lowered_module(network(body), (1, 6, 6, 2))


def test_layers_without_activation_between() -> None:
    def body(x: Any) -> Any:
        x = nn.Conv(4, (3, 3))(x)
        x = nn.Conv(4, (3, 3), padding="VALID")(nn.avg_pool(x, (2, 2)))
        return norm()(nn.Dense(3)(x.mean((1, 2))))

    assert kinds(lowered_module(network(body))) == ["rescale", "rescale"]


def test_norm_after_pooling_and_flattening() -> None:
    def body(x: Any) -> Any:
        x = nn.avg_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2))
        x = jnp.pad(norm()(x), ((0, 0), (1, 0), (0, 2), (0, 0)))[:, ::2, ::-1]
        return nn.Dense(3)(nn.relu(norm()(x.transpose(0, 3, 1, 2).swapaxes(1, 3))).reshape(2, -1))

    plan = lowered_module(network(body))
    assert kinds(plan) == ["relu"]


@pytest.mark.parametrize("pad_first", [True, False])
def test_normalised_input(pad_first: bool) -> None:
    """Private moments fold into the first kernel: no round trip, no further product."""

    def apply_fn(params: Any, x: Any) -> Any:
        x = (x - params["mean"]) / params["std"]
        if pad_first:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(x)

    rng = np.random.Generator(np.random.Philox(3))
    params = {
        "mean": rng.normal(size=3).astype(np.float32),
        "std": rng.uniform(0.5, 2, 3).astype(np.float32),
        "kernel": rng.normal(size=(3, 3, 3, 4)).astype(np.float32),
    }
    plan = lowered(apply_fn, params, (2, 6, 6, 3))
    assert kinds(plan) == ["relu"] and n_products(plan) == 1


def test_activations() -> None:
    def body(x: Any) -> Any:
        x = nn.Conv(4, (3, 3))(x)
        y = nn.Dense(2)(nn.relu6(x))
        bounded = jnp.clip(x, -0.5, 0.5), jnp.clip(x, -jnp.inf, 0.25), lax.clamp(-1.0, x, 1.0)
        return (
            y,
            bounded,
            nn.leaky_relu(x, 0.1),
            jnp.where(x > 0, x, 0),
            jnp.where(2 * x < 0, -x, 3 * x),
            abs(x),
            jnp.minimum(x, -x),
            jnp.maximum(x[..., :2], x[..., 2:]),
        )

    lowered_module(network(body))


def test_outputs_of_every_kind() -> None:
    """A pytree of secrets, the image itself, and values that do not follow from it."""

    def body(x: Any) -> Any:
        y = nn.Conv(2, (3, 3))(x)
        return {
            "image": x,
            "pair": (y, nn.relu(y)),
            "known": jnp.arange(3),
            "none": x * 0.0,
            "only constant": 0 * y + 2.0,
            "half": (y * 0.5).astype(jnp.float16).astype(jnp.float32).sum() * 0,
        }

    lowered_module(network(body))


def test_captured_arrays_are_private() -> None:
    captured = np.random.Generator(np.random.Philox(4)).normal(size=(3, 2)).astype(np.float32)
    plan = lowered(lambda params, x: x @ captured + captured[0], {}, (4, 3))
    assert n_products(plan) == 1
    assert any(isinstance(node, ir.Constant) for node in ir.reachable(plan.outputs))


def test_public_matrices_are_no_products() -> None:
    """Means by a matrix that follows from the architecture; masks; choices by position."""

    def apply_fn(params: Any, x: Any) -> Any:
        rows = jnp.where(jnp.arange(6)[None] // 2 == jnp.arange(3)[:, None], 0.5, -1.0)
        mask = jnp.arange(6) % 2
        y = jnp.einsum("ah,nhwc->nawc", rows, x * params["w"])
        return (
            y * mask[:, None],
            jnp.where(jnp.arange(6)[:, None] < 2, y, 1.0),
            x * jnp.arange(1, 7)[:, None, None],
        )

    plan = lowered(apply_fn, {"w": np.float32(1.5) * np.ones(2, np.float32)}, (2, 6, 6, 2))
    assert not plan.gates


def test_moving_elements_about() -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        y = x * params
        parts = jnp.split(y, [1, 3], 1)
        return (
            *parts,
            y[:, jnp.array([3, 0, 0])],
            lax.dynamic_slice(y, (0, 2, 1, 0), (2, 2, 3, 1)),
            jnp.concatenate([y, jnp.ones((2, 4, 1, 2)), jnp.zeros((2, 4, 1, 2)), x], 2),
            jnp.concatenate([params + jnp.zeros((2, 4, 4, 2)), y], 1),
            jnp.pad(y, ((0, 0), (1, 2), (0, 0), (0, 0)), constant_values=3),
            lax.pad(y, 0.0, ((0, 0, 0), (-1, 2, 1), (1, -2, 0), (0, 0, 0))),
            jnp.stack([y[0], y[1] - params]),
            jnp.broadcast_to(y[:, :1, :1], y.shape) + y,
            y.sum((1, 3), keepdims=True),
            y[0, 0, 0, 0],
            jnp.roll(y, 1, 2),
            *jnp.unstack(y, axis=2),
            jnp.tile(y, (1, 1, 2, 1)),
            jnp.stack([y, x, jnp.ones((2, 4, 4, 2))], 2),
            -y + x - 1.0 - (2.0 - y) / 4,
        )

    plan = lowered(apply_fn, np.array([0.5, -2], np.float32), (2, 4, 4, 2))
    assert not plan.gates


def test_nested_functions_are_inlined() -> None:
    @jax.custom_vjp
    def twice(x: Any) -> Any:
        return 2 * nn.relu(x)

    twice.defvjp(lambda x: (twice(x), None), lambda _, g: (g,))

    @jax.jit
    @jax.checkpoint
    def apply_fn(params: Any, x: Any) -> Any:
        x = jax.checkpoint(twice)(x @ params)
        return lax.cond(jnp.arange(3)[1] > 0, lambda x: x + 1, lambda x: x * x, x)

    lowered(apply_fn, np.eye(3, dtype=np.float32), (2, 3))


def test_weights_are_evaluated_once_a_call() -> None:
    """A chain that doubles forty times is forty operations, not 2^40."""

    def apply_fn(params: Any, x: Any) -> Any:
        for _ in range(40):
            params = params + params * 0.5
        return x * params

    lowered(apply_fn, np.ones(3, np.float32), (1, 3))


def test_plan_works_in_rings() -> None:
    """Public maps on words, negative factors included, wrap as signed integers would."""

    def body(x: Any) -> Any:
        x = nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)
        rows = jnp.where(jnp.arange(4)[None] == jnp.arange(2)[:, None], 1.0, -1.0)
        x = jnp.einsum("ah,nhwc->nawc", rows, x)
        return nn.max_pool(x, (2, 2), (1, 1), "SAME") * (1 - 2 * (jnp.arange(3) % 2))

    plan = lower(lambda _, x: body(x), {}, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    roots = [gate.operand for gate in plan.gates] + list(plan.outputs)
    publics = [node for node in ir.reachable(roots) if isinstance(node, ir.Public)]
    assert publics
    rng = np.random.Generator(np.random.Philox(5))
    with jax.enable_x64(True):
        for node in publics:
            xs = [rng.integers(-99, 99, part.shape) for part in node.operands]
            expected = np.asarray(node.apply(*(x.astype(np.float64) for x in xs))).astype(np.int64)
            for word in (np.uint32, np.uint64):
                found = node.apply(*(jnp.asarray(x.astype(word)) for x in xs))
                assert found.dtype == word
                np.testing.assert_array_equal(np.asarray(found), expected.astype(word))


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 9),
    size=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 2),
    rectify=st.booleans(),
)
def test_any_window(
    length: int, size: int, stride: int, padding: tuple[int, int], dilation: int, rectify: bool
) -> None:
    def apply_fn(params: Any, x: Any) -> Any:
        x = x * params
        return lax.reduce_window(
            nn.relu(x) if rectify else x,
            -jnp.inf,
            lax.max,
            (1, size),
            (1, stride),
            ((0, 0), padding),
            window_dilation=(1, dilation),
        )

    shape = jax.eval_shape(apply_fn, np.float32(1), jnp.zeros((2, length))).shape
    image = np.random.Generator(np.random.Philox(6)).normal(size=(2, length)).astype(np.float32)
    if not np.all(np.isfinite(apply_fn(np.float32(1), image))):
        with pytest.raises(ProtocolError, match="nothing but padding"):
            lower(apply_fn, np.float32(1), image)
    elif shape[1]:
        lowered(apply_fn, np.float32(-1.5), (2, length))


# --- what cannot run encrypted


class Block(nn.Module):
    """Does something that cannot run encrypted, in a layer of its own."""

    function: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.function(nn.Conv(4, (1, 1))(x))


@pytest.mark.parametrize(
    ("function", "primitive"),
    [
        (jnp.tanh, "tanh"),
        (nn.softmax, "exp"),
        (nn.GroupNorm(2), "(square|mul|integer_pow)"),
        (lambda x: 1 / x, "div"),
        (lambda x: x**2, "integer_pow"),
        (lambda x: x * x.mean(), "mul"),
        (lambda x: jnp.where(x > 1, x, 0), "gt"),
        (lambda x: (x > 0).astype(jnp.float32), "convert_element_type"),
        (lambda x: x.astype(int), "convert_element_type"),
        (lambda x: jnp.argmax(x, -1), "argmax"),
        (lambda x: nn.max_pool(x, (1, 1), (1, 1), ((1, 1), (1, 1))), "reduce_window_max"),
        (lambda x: jnp.take(x, jnp.array([0, 99]), axis=-1), "gather"),
        (lambda x: jnp.arange(3)[x[0, 0, 0, 0].astype(int)], "convert_element_type"),
    ],
)
def test_what_cannot_run_is_named(function: Callable[[Any], Any], primitive: str) -> None:
    module = network(lambda x: Block(function, name="middle")(x))
    shape = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), shape)
    here = r"layer middle\S*, \S*test_secure_jaxpr.py:\d+"
    with pytest.raises(
        ProtocolError, match=rf"^{here}.*: {primitive}\b.*cannot run encrypted"
    ) as e:
        lower(jax.jit(module.apply), params, shape)
    assert "\n" not in str(e.value)


def test_secret_kernel_and_sign_as_output_are_refused() -> None:
    def convolved(params: Any, x: Any) -> Any:
        return lax.conv_general_dilated(params, x, (1, 1), "VALID")

    with pytest.raises(ProtocolError, match="secret kernel"):
        lower(convolved, np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 2, 2), np.float32))
    with pytest.raises(ProtocolError, match="output"):
        lower(lambda _, x: x > 0, {}, np.ones((1, 2), np.float32))
