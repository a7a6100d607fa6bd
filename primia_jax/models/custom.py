"""Networks of a user's own modules (`config.model.name = "module:object"`), checked before use.

The contract is in docs/own_parts.md.
"""

import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from flax import traverse_util

from primia_jax.config.sections import ExperimentConfig, ModelConfig
from primia_jax.core import objects
from primia_jax.errors import ConfigError

WHERE = "config.model.name"
_OFFERED = ("width", "pooling", "norm", "stem", "convolution", "channels")


def build(config: ModelConfig, n_classes: int) -> nn.Module:
    """The network that the class or function `config.name` makes.

    It is given `n_classes`, and those options of `config.model` that it has parameters for.

    Raises:
      ConfigError: if it cannot be imported here, or does not give a Flax Linen module that takes
        `train`.
    """
    factory = objects.load(config.name, WHERE)
    offered = {name: getattr(config, name) for name in _OFFERED}
    try:
        inspect.signature(factory).bind_partial(n_classes=n_classes)
        module = factory(n_classes=n_classes, **objects.arguments_for(factory, offered))
    except Exception as error:
        raise _refusal(
            config, f"called with n_classes={n_classes} it failed with {_described(error)}"
        ) from None
    if not isinstance(module, nn.Module):
        raise _refusal(config, f"gives a {type(module).__name__}; it must give a flax.linen.Module")
    parameters = inspect.signature(type(module).__call__).parameters
    if "train" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise _refusal(config, "its __call__ has no argument `train`; write (self, x, train=False)")
    try:
        hash(module)
    except TypeError:
        raise _refusal(
            config, "its fields cannot be hashed; take tuples instead of lists"
        ) from None
    return module


@functools.lru_cache(maxsize=4)
def check(module: nn.Module, config: ExperimentConfig, n_outputs: int, spatial: bool) -> None:
    """Checks a user's network by shapes alone; networks of this package pass at once.

    Args:
      module: the network that `build` made.
      config: of the experiment.
      n_outputs: outputs that the task needs, of the last axis.
      spatial: True if the task needs them of each pixel.

    Raises:
      ConfigError: if it has variables that hospitals cannot average, or outputs of another shape
        than the task needs, or does not fit the normalisation or privacy that is configured.
    """
    model, size = config.model, config.data.image_size
    if not objects.is_reference(model.name):
        return
    images = jax.ShapeDtypeStruct((2, size, size, model.channels), np.float32)
    given = f"images {list(images.shape)}"
    try:
        variables = jax.eval_shape(
            functools.partial(module.init, train=False), jax.random.key(0), images
        )
        rest = [name for name in variables if name != "params"]
        outputs = jax.eval_shape(functools.partial(module.apply, train=False), variables, images)
    except Exception as error:
        raise _refusal(model, f"{given} with train=False fail with {_described(error)}") from None
    expected = (2, size, size, n_outputs) if spatial else (2, n_outputs)
    if getattr(outputs, "shape", None) != expected or outputs.dtype != jnp.float32:
        got = jax.tree.map(lambda x: f"{x.dtype} {list(x.shape)}", outputs)
        raise _refusal(
            model,
            f"gives {got} for {given}; config.task = {config.task!r} needs float32 logits "
            f"{list(expected)}",
        )
    _check_variables(dict(variables), config)
    try:
        train = functools.partial(module.apply, train=True, mutable=rest)
        _, updated = jax.eval_shape(train, variables, images)
    except flax_errors.InvalidRngError:
        raise _refusal(
            model, "draws random numbers in training (dropout), which is not supported; remove it"
        ) from None
    except Exception as error:
        raise _refusal(model, f"{given} with train=True fail with {_described(error)}") from None
    before = {name: variables[name] for name in rest}
    if _shapes(updated) != _shapes(before):
        raise _refusal(
            model, "adds or drops variables in training; they must stay as `init` makes them"
        )


def _check_variables(variables: dict[str, Any], config: ExperimentConfig) -> None:
    """Refuses variables that cannot be averaged, and moments that the configuration excludes."""
    model = config.model
    if more := sorted(set(variables) - {"params", "batch_stats"}):
        raise _refusal(
            model, f"has variables {more[0]!r}; only 'params' and 'batch_stats' can be averaged"
        )
    for path, leaf in traverse_util.flatten_dict(variables, sep="/").items():
        if leaf.dtype != jnp.float32:
            raise _refusal(model, f"{path} is {leaf.dtype}; all variables must be float32")
    moments = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    kinds: dict[Any, dict[str, Any]] = {}
    for path, leaf in moments.items():
        kinds.setdefault(path[:-1], {})[path[-1]] = leaf.shape
    for path, shapes in kinds.items():
        if set(shapes) != {"mean", "var"} or len({*shapes.values()}) > 1 or len(shapes["mean"]) > 1:
            raise _refusal(
                model,
                f"batch_stats/{'/'.join(path)} must hold vectors `mean` and `var` of one length, "
                "as those of flax.linen.BatchNorm",
            )
    if moments and config.privacy.mode != "none":
        raise _refusal(
            model,
            f"has batch norm, for which config.privacy.mode = {config.privacy.mode!r} proves "
            "nothing; take flax.linen.GroupNorm",
        )
    if moments and model.norm not in ("batch", "frozen"):
        raise _refusal(
            model, f"has batch norm, and config.model.norm = {model.norm!r}; set that to 'batch'"
        )
    if not moments and config.federated.batch_norm == "fedbn":
        raise _refusal(
            model,
            "has no batch norm, which config.federated.batch_norm = 'fedbn' needs; set that to "
            "'pooled'",
        )


def _shapes(tree: Any) -> list[tuple[str, Any]]:
    """(path, shape) of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    return [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in leaves]


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {objects.first_line(error)}"


def _refusal(config: ModelConfig, problem: str) -> ConfigError:
    return ConfigError(f"{WHERE} = {config.name!r}: {problem} (docs/own_parts.md)")
