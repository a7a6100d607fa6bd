"""Losses as users write them."""

import jax
import jax.numpy as jnp


def focal(outputs, targets, weights):
    log_p = jax.nn.log_softmax(outputs)
    hard = (1 - jnp.exp(log_p)) ** 2
    return -(hard * targets * log_p).sum(-1) * (targets @ weights)


def constant(outputs, targets, weights):
    return jnp.ones(len(outputs))


def summed(outputs, targets, weights):
    return focal(outputs, targets, weights).sum()


def failing(outputs, targets, weights):
    raise ValueError("two\nlines")
