"""A dense layer's gradient gives away its input, exactly."""

import jax
import networks
import numpy as np
import pytest

from primia_jax.errors import ConfigError
from primia_jax.inversion import LocalTraining, observe, penultimate, recover_image, recover_input
from primia_jax.inversion.analytic import layer_input


@pytest.mark.parametrize("content", ["gradient", "weights"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_behind_a_dense_first_layer_is_recovered_exactly(content, channels):
    module = networks.DenseFirst()
    images, labels = networks.phantoms(1, 16)
    inputs = np.zeros((1, 16, 16, channels), np.float32)
    variables = module.init(jax.random.key(0), inputs)
    training = LocalTraining(module, content=content, mean=0.5, std=0.2, channels=channels)
    seen = observe(training, variables, images, labels, labels_known=False)
    found = recover_image(seen, "Dense_0", images.shape)
    # A step's change of the weights keeps fewer digits than the gradient.
    np.testing.assert_allclose(found, images, atol=1e-5 if content == "gradient" else 1e-2)


def test_features_before_the_last_layer_of_a_cnn_are_recovered():
    module, variables = networks.small_cnn(16, width=4)
    images, labels = networks.phantoms(1, 16)
    training = LocalTraining(module, train=False, mean=0.4, std=0.3)
    seen = observe(training, variables, images, labels)
    features = penultimate(module, variables, mean=0.4, std=0.3)(images)
    np.testing.assert_allclose(recover_input(seen, "fc"), features[0], rtol=1e-4, atol=1e-6)


def test_a_layer_without_a_gradient_gives_nothing():
    assert np.isnan(layer_input(np.zeros((3, 2)), np.zeros(2))).all()


def test_wrong_layers_are_refused():
    module, variables = networks.small_cnn(16, width=4)
    images, labels = networks.phantoms(1, 16)
    seen = observe(LocalTraining(module), variables, images, labels)
    with pytest.raises(ConfigError, match=r"no dense layer 'conv1'.* it has fc"):
        recover_input(seen, "conv1")
    with pytest.raises(ConfigError, match="'fc' takes 16 inputs, an image has 256 values"):
        recover_image(seen, "fc", images.shape)
