"""Runs a diagnosis of tiny networks over many copies of one image, under the audit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config import MpcConfig
from primia_jax.mpc import inference
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, PARTIES
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.transcript import Transcript
from primia_jax.runtime import LocalDriver

COPIES = 2048
# A pixel, two gates, then one: copies come last in every array.
PARAMS = {
    "a": np.asarray([[0.7]], np.float32),
    "b": np.asarray([[-0.6]], np.float32),
    "c": np.asarray([[0.9]], np.float32),
    "d": np.asarray([[0.8]], np.float32),
}


def network(params, x):
    first = jax.nn.relu(x @ params["a"])
    second = jax.nn.relu(x @ params["b"] + first)
    return jax.nn.relu(second @ params["c"]) @ params["d"]


def one_gate(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["d"]


@functools.cache
def make_program(copies, apply_fn=network, **settings):
    example = jax.ShapeDtypeStruct((copies, 1), jnp.float32)
    calibration = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    config = MpcConfig(**settings)
    return inference.encrypt(apply_fn, PARAMS, example, calibration=calibration, config=config)


TABLE = {"effective_bits": 8, "sign_slack_bits": 0}
TREE = {"effective_bits": 11, "sign_slack_bits": 0, "leaf_bits": 7}


def audited(images=(0.0,), streamed=False, copies=COPIES, **settings):
    """(transcript of one diagnosis an image, the answers, the right answers), not audited yet."""
    program = make_program(copies, **settings)
    protocol, circuit = PROTOCOLS[program.config.protocol], program.circuit
    driver = LocalDriver(
        {
            DATA_OWNER: lambda: protocol.data_owner(circuit),
            MODEL_OWNER: lambda: protocol.model_owner(circuit, PARAMS),
            CRYPTO_PROVIDER: lambda: protocol.provider(circuit),
        }
    )
    transcript, answers, expected = Transcript(copies), [], []

    def run(programs):
        recorded = {name: transcript.recorded(name, steps) for name, steps in programs.items()}
        return driver.run(recorded)[0]

    run(dict.fromkeys(PARTIES, protocol.set_up))
    for value in images:
        batch = np.full((copies, 1), value, np.float32)
        programs = protocol.programs(batch)
        if streamed:
            programs = {name: functools.partial(p, streamed=True) for name, p in programs.items()}
        else:
            number = max(map(protocol.next_number, driver.states.values()))
            run(dict.fromkeys(PARTIES, functools.partial(protocol.prepare, numbers=(number,))))
        answers.append(np.asarray(run(programs)[DATA_OWNER].outputs[0]))
        expected.append(np.asarray(protocol.in_the_clear(circuit, PARAMS, batch)[0]))
    return transcript, np.stack(answers), np.stack(expected)
