"""Labels read off the last bias: exact for one image, and for batches of an untrained network."""

import jax
import networks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia_jax.errors import ConfigError
from primia_jax.inversion import LocalTraining, infer_labels, observe
from primia_jax.inversion.labels import infer_from_bias_gradient
from primia_jax.inversion.layers import dense_layers, output_layer


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.data())
def test_one_image_is_always_told(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    probabilities = np.asarray(jax.nn.softmax(np.array(logits)))
    gradient = probabilities - np.eye(len(logits))[label]
    assert infer_from_bias_gradient(gradient, 1, probabilities[::-1]).tolist() == [label]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.lists(st.floats(0.2, 4), min_size=5, max_size=5),
    st.lists(st.floats(0.1, 1), min_size=5, max_size=5),
)
def test_batches_are_told_where_all_images_have_the_same_probabilities(labels, weights, shares):
    weights, probabilities = np.array(weights), np.array(shares) / np.sum(shares)
    each = probabilities - np.eye(5)[labels]
    gradient = (each * weights[labels][:, None]).mean(0)
    found = infer_from_bias_gradient(gradient, len(labels), probabilities, weights)
    assert found.tolist() == sorted(labels)


@pytest.mark.parametrize(
    ("content", "class_weights"), [("gradient", ()), ("weights", (0.5, 2.0, 1.0))]
)
def test_labels_of_an_update(content, class_weights):
    module, variables = networks.small_cnn(16, width=4)
    images, labels = networks.phantoms(4, 16)
    training = LocalTraining(
        module, content=content, learning_rate=0.3, class_weights=class_weights
    )
    for label in range(networks.CLASSES):
        one = observe(training, variables, images[:1], [label], labels_known=False)
        assert infer_labels(one, (1, 16, 16, 1)).tolist() == [label]
    batch = observe(training, variables, images, labels, labels_known=False)
    assert infer_labels(batch, (4, 16, 16, 1)).tolist() == sorted(labels.tolist())


def test_the_output_layer_is_the_last_by_number():
    layer = {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}
    params = {f"Dense_{i}": layer for i in (10, 9, 2)}
    params["Conv"] = {"kernel": np.zeros((1, 1, 1, 2)), "bias": np.zeros(2)}
    assert [found.path for found in dense_layers(params)] == ["Dense_2", "Dense_9", "Dense_10"]
    assert output_layer(params, 2).path == "Dense_10"
    with pytest.raises(ConfigError, match="no dense layer with a bias and 3 outputs"):
        output_layer(params, 3)
