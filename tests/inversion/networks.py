"""Networks so small that attacks on them take seconds, and phantoms to attack."""

import flax.linen as nn
import jax
import numpy as np

from primia_jax import models
from primia_jax.config.sections import ModelConfig, PhantomConfig
from primia_jax.data import catalogue, phantom
from primia_jax.models import layers

CLASSES = 3


def even(key, shape, dtype):
    """Weights uniform within 1/2, as Zhu et al. draw them."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


class Smooth(nn.Module):
    """In the manner of what Zhu et al. 2019 attack: sigmoids, strides for pooling."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.sigmoid(nn.Conv(12, (5, 5), (2, 2), kernel_init=even, bias_init=even)(x))
        return nn.Dense(CLASSES, kernel_init=even, bias_init=even)(x.reshape(len(x), -1))


class Normed(nn.Module):
    """As small as a network with batch norm can be."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        return nn.Dense(CLASSES)(nn.relu(layers.BatchNorm()(x, train)))


class DenseFirst(nn.Module):
    """Dense over all pixels, and smooth."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.sigmoid(nn.Dense(24)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


def phantoms(n, side):
    """Images [n side side 1] float32 in [0, 1] and labels [n]."""
    films = phantom.catalogue(PhantomConfig(n_train=12, n_test=3), 1, 0)
    data = catalogue.load(films, np.arange(n), side)
    return data.images.astype(np.float32) / 255, data.labels


def small_cnn(side, **settings):
    """The project's small CNN, untrained: (module, variables)."""
    module = models.build(ModelConfig(name="simple", **settings), CLASSES)
    return module, models.init(module, jax.random.key(1), side, 1)


def psnr(a, b):
    return -10 * np.log10(np.mean(np.square(np.asarray(a) - np.asarray(b))))
