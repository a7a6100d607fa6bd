"""Networks as users write them: one that keeps to the contract, and ones that break it."""

import flax.linen as nn
import jax.numpy as jnp


class Plain(nn.Module):
    """No normalisation."""

    n_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=(2, 2))(images))
        return nn.Dense(self.n_classes)(x.mean((1, 2)))


class Normed(nn.Module):
    """Flax's own batch norm."""

    n_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), strides=(2, 2))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.n_classes)(x.mean((1, 2)))


class NoTrain(nn.Module):
    n_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.n_classes)(images.mean((1, 2)))


class Listed(Plain):
    sizes: list = ()


class Fails(Plain):
    @nn.compact
    def __call__(self, images, train=False):
        raise ValueError("too small\nby far")


class Drops(Plain):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(images)
        return nn.Dense(self.n_classes)(x.mean((1, 2)))


class Counts(Plain):
    @nn.compact
    def __call__(self, images, train=False):
        self.variable("counts", "n", jnp.zeros, ())
        return nn.Dense(self.n_classes)(images.mean((1, 2)))


class Half(Plain):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(self.n_classes, param_dtype=jnp.bfloat16)(images.mean((1, 2)))
        return x.astype(jnp.float32)


def one_more(n_classes):
    return Plain(n_classes + 1)


def listed(n_classes):
    return Listed(n_classes, sizes=[1, 2])


def nothing(n_classes):
    return None


def no_arguments():
    return Plain(3)


def raising(n_classes):
    raise RuntimeError("two\nlines")
