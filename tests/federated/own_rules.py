"""Aggregation rules as users write them."""

import numpy as np


def momentum(options):
    def init(params):
        return tuple(np.zeros_like(w) for w in params)

    def apply(state, params, average):
        state = tuple(np.float32(0.9) * m + (a - w) for m, w, a in zip(state, params, average))
        return tuple(w + m for w, m in zip(params, state)), state

    return init, apply


def shorter(options):
    return (lambda params: ()), (lambda state, params, average: (average[1:], state))


def failing(options):
    raise ValueError("two\nlines")
