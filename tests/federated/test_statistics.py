"""Pooled mean and standard deviation are those of all pixels together."""

import numpy as np
import pytest

from primia_jax.data import Dataset
from primia_jax.errors import DataError
from primia_jax.federated import statistics
from primia_jax.federated.aggregation import Total
from primia_jax.tasks import Classification

TASK = Classification(("a", "b", "c"))


def dataset(images, labels, padding=None):
    n = len(labels)
    return Dataset(
        images=images,
        labels=np.asarray(labels, np.int32),
        names=tuple(map(str, range(n))),
        patients=np.arange(n).astype(str),
        sites=np.full(n, "h"),
        class_names=("a", "b", "c"),
        padding=padding,
    )


def add(contributions):
    return Total(
        (sum(c.weight * c.values[0] for c in contributions),),
        sum(c.weight for c in contributions),
        sum(c.counts for c in contributions),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pooled_over_sites_of_different_size_and_brightness(dtype):
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max
    sites = [
        rng.integers(0, top // k, (n, 8, 8, 1)).astype(dtype) for k, n in ((1, 5), (2, 30), (8, 2))
    ]
    parts = [statistics.contribution(dataset(x, np.arange(len(x)) % 3), TASK) for x in sites]
    pooled = statistics.pooled(add(parts), ("a", "b", "c"), True)
    everything = np.concatenate(sites).astype(np.float64) / top
    assert pooled.mean == pytest.approx(everything.mean(), abs=2**-17 + 1e-7)
    assert pooled.std == pytest.approx(everything.std(), abs=2**-17 + 1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_padding_does_not_count(dtype):
    """Sites with padding of any extent give the statistics of the pixels inside, all alike."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (30, 8, 8, 1)).astype(dtype)
    padding = rng.random((30, 8, 8)) < np.linspace(0, 1, 30)[:, None, None]
    images[padding] = 0
    labels, parts = np.arange(30) % 3, []
    for at in (slice(0, 5), slice(5, 25), slice(25, 30)):
        parts.append(statistics.contribution(dataset(images[at], labels[at], padding[at]), TASK))
    pooled = statistics.pooled(add(parts), ("a", "b", "c"), True)
    inside = images[~padding] / np.iinfo(dtype).max
    assert pooled.mean == pytest.approx(inside.mean(), abs=2**-17 + 1e-7)
    assert pooled.std == pytest.approx(inside.std(), abs=2**-17 + 1e-7)


def test_without_padding_no_bit_changes():
    """The share of the pixels that count is exactly one, in each contribution and in their mean."""
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    whole = statistics.pixel_moments(images)
    assert whole == statistics.pixel_moments(images, np.zeros((7, 8, 8), bool)) and whole.share == 1
    parts = [
        statistics.contribution(dataset(images[:n], np.arange(n) % 3), TASK)
        for n in (3, 5, 6, 7, 7)
    ]
    assert add(parts).mean()[0][2] == 1


def test_nothing_but_padding_is_an_error():
    images, padding = np.zeros((3, 4, 4, 1), np.uint8), np.ones((3, 4, 4), bool)
    total = add([statistics.contribution(dataset(images, [0, 1, 2], padding), TASK)])
    with pytest.raises(DataError, match="padding"):
        statistics.pooled(total, ("a", "b", "c"), True)


def test_class_weights_have_mean_one_over_the_records():
    images = np.zeros((10, 4, 4, 1), np.uint8)
    labels = [0] * 5 + [1] * 3 + [2] * 2
    total = add([statistics.contribution(dataset(images, labels), TASK)])
    weights = statistics.pooled(total, ("a", "b", "c"), True).class_weights
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights * [5, 3, 2], weights[0] * 5, rtol=1e-6)
    assert np.all(statistics.pooled(total, ("a", "b", "c"), False).class_weights == 1)


def test_black_images_do_not_divide_by_zero():
    total = add(
        [statistics.contribution(dataset(np.zeros((3, 4, 4, 1), np.uint8), [0, 1, 2]), TASK)]
    )
    assert statistics.pooled(total, ("a", "b", "c"), True).std > 0


def test_a_class_that_nobody_has_is_named():
    total = add([statistics.contribution(dataset(np.zeros((2, 4, 4, 1), np.uint8), [0, 2]), TASK)])
    with pytest.raises(DataError, match="class b"):
        statistics.pooled(total, ("a", "b", "c"), True)
