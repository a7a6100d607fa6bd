"""Flower's SecAgg+: what one client computes in a round, by Flower's own functions.

    python benchmarks/peers/flower_peer.py VECTOR.npy NEIGHBOURS THRESHOLD

Runs under a Python that has Flower; started by `python -m benchmarks.secure_aggregation`. The
other clients do no more than what gives this one its keys and shares. Prints a JSON line when it is
ready, and one for every line `run` on standard input.
"""

import importlib
import json
import logging
import sys
import time

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import Key

# The package has a function of the same name.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
logging.getLogger("flwr").setLevel(logging.ERROR)

# The defaults of Flower's own SecAggPlusWorkflow.
CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE, MAX_WEIGHT = 8.0, 4194304, 4294967296, 1000.0
SAMPLES = 100


def run(vector, neighbours, threshold):
    """Seconds of processor time of each stage of client 0."""
    settings = {
        Key.SAMPLE_NUMBER: neighbours + 1,
        Key.SHARE_NUMBER: neighbours + 1,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIPPING_RANGE,
        Key.TARGET_RANGE: TARGET_RANGE,
        Key.MOD_RANGE: MOD_RANGE,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    clients = list(range(neighbours + 1))
    states = [mod.SecAggPlusState(nid=i) for i in clients]
    seconds = []

    def timed(i, function, *arguments):
        start = time.process_time()
        result = function(states[i], *arguments)
        if i == 0:
            seconds.append(time.process_time() - start)
        return result

    publics = {}
    for i in clients:
        made = timed(i, mod._setup, settings)
        publics[str(i)] = [made[Key.PUBLIC_KEY_1], made[Key.PUBLIC_KEY_2]]
    letters = []
    for i in clients:
        made = timed(i, mod._share_keys, dict(publics))
        for to, text in zip(made[Key.DESTINATION_LIST], made[Key.CIPHERTEXT_LIST]):
            if to == 0:
                letters.append((i, text))
    box = {
        Key.SOURCE_LIST: [sender for sender, _ in letters],
        Key.CIPHERTEXT_LIST: [text for _, text in letters],
    }
    parameters = ndarrays_to_parameters([vector])
    timed(0, mod._collect_masked_vectors, box, SAMPLES, parameters)
    timed(0, mod._unmask, {Key.ACTIVE_NODE_ID_LIST: clients, Key.DEAD_NODE_ID_LIST: []})
    return seconds


def main():
    vector = np.load(sys.argv[1])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        seconds = run(vector, int(sys.argv[2]), int(sys.argv[3]))
        print(json.dumps({"seconds": sum(seconds), "stages": seconds}), flush=True)


if __name__ == "__main__":
    main()
