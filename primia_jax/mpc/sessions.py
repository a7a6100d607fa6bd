"""A session on disk: what each party must remember so that keys outlive a restart.

    folder/data_owner/session.npz       its seed, and the masked weights
    folder/data_owner/keys/             its key store, and the epoch of the last start
    folder/PARTY/session.lock           held while a program has the session open
    folder/model_owner/...              its seed, and a digest of the weights
    folder/crypto_provider/session.npz  three seeds
    folder/crypto_provider/ledger       the key numbers that it dealt, and beside it the epoch

In a hospital network each party keeps its own folder on its own disk; they are side by side here
because one process plays all three. All are secrets of their party.

One program at a time has a session open: two would each take a key of the same number once a
party's ledger comes back from a backup under them.
"""

import dataclasses
import hashlib
import io
import itertools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from primia_jax.core.arrays import read_archive
from primia_jax.core.locks import Hold
from primia_jax.core.storage import private_folder, reason, write_bytes
from primia_jax.errors import CheckpointError, ProtocolError
from primia_jax.mpc import prg, ring
from primia_jax.mpc.circuit import Circuit
from primia_jax.mpc.key_store import KeyStore
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, PARTIES, fss

_FILE, _KEYS, _LEDGER = "session.npz", "keys", "ledger"
_LOCK = "session.lock"


def exists(folder: pathlib.Path) -> bool:
    """True if any party keeps a session in `folder`."""
    return any((folder / party / _FILE).exists() for party in PARTIES)


def hold(folder: pathlib.Path) -> list[Hold]:
    """Sole use of the parties' folders of the session in `folder`.

    Raises:
      StorageError: if another program has it open.
    """
    refusal = (
        f"{folder}: another program has this session open; close it first, or begin a new session "
        "in another folder"
    )
    return [Hold(private_folder(folder / party) / _LOCK, refusal) for party in PARTIES]


def begin(circuit: Circuit, params: Any, folder: pathlib.Path) -> dict[str, Any]:
    """The parties' states, by name, of a new session whose keys will be kept in `folder`."""
    session = prg.new_seed()[:8].tobytes().hex()
    return {
        DATA_OWNER: fss.data_owner(circuit, _store(circuit, folder / DATA_OWNER, session)),
        MODEL_OWNER: fss.model_owner(
            circuit, params, _store(circuit, folder / MODEL_OWNER, session)
        ),
        CRYPTO_PROVIDER: fss.provider(circuit, _ledger(folder, session)),
    }


def save(states: dict[str, Any], folder: pathlib.Path, params: Any) -> None:
    """Keeps what a session needs; to be called once, after its set-up.

    Raises:
      StorageError: if it cannot be written.
    """
    client, owner, provider = (states[n] for n in (DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER))
    circuit = client.circuit
    common = {"fingerprint": circuit.fingerprint, "session": client.store.session}
    deltas = {f"delta_{i}_{j}": digit for i, j, digit in _digits(client.deltas)}
    _write(folder / DATA_OWNER, {**common, "seed": client.root, **deltas})
    _write(
        folder / MODEL_OWNER, {**common, "seed": owner.root, "weights": _digest(circuit, params)}
    )
    seeds = dict(zip(("seed_0", "seed_1"), provider.roots))
    _write(folder / CRYPTO_PROVIDER, {**common, "seed": provider.root, **seeds})


def resume(circuit: Circuit, params: Any, folder: pathlib.Path) -> dict[str, Any]:
    """The parties' states, by name, of the session in `folder`; they have no epoch yet.

    Raises:
      ProtocolError: if it is one of another network, of other weights or of another version, or if
        a party's ledger of used keys is missing.
    """
    stored = {party: _read(folder / party, circuit) for party in PARTIES}
    mine, kept = stored[MODEL_OWNER], stored[CRYPTO_PROVIDER]
    session = {party: str(stored[party]["session"]) for party in PARTIES}
    if str(mine["weights"]) != _digest(circuit, params):
        raise ProtocolError(
            f"{folder}: its session is one of other weights; begin one in another folder"
        )
    client = fss.data_owner(
        circuit, _store(circuit, folder / DATA_OWNER, session[DATA_OWNER], True)
    )
    store = _store(circuit, folder / MODEL_OWNER, session[MODEL_OWNER], True)
    owner = fss.model_owner(circuit, params, store)
    with ring.x64():
        deltas = []
        for i, product in enumerate(circuit.products):
            plan = circuit.mask_plan(product)
            deltas.append(
                [
                    jnp.asarray(stored[DATA_OWNER][f"delta_{i}_{j}"], plan.unit.operand)
                    for j in range(plan.w_limbs)
                ]
            )
    ledger = _ledger(folder, session[CRYPTO_PROVIDER], True)
    provider = dataclasses.replace(fss.provider(circuit, ledger), root=kept["seed"])
    return {
        DATA_OWNER: dataclasses.replace(
            client, root=stored[DATA_OWNER]["seed"], deltas=tuple(deltas)
        ),
        MODEL_OWNER: dataclasses.replace(owner, root=mine["seed"], words=None),
        CRYPTO_PROVIDER: fss.with_seeds(provider, kept["seed_0"], kept["seed_1"]),
    }


def _store(circuit: Circuit, folder: pathlib.Path, session: str, begun: bool = False) -> KeyStore:
    return KeyStore(folder / _KEYS, circuit.fingerprint, session, begun)


def _ledger(folder: pathlib.Path, session: str, begun: bool = False) -> Ledger:
    return Ledger(folder / CRYPTO_PROVIDER / _LEDGER, session, begun)


def _digits(deltas: Any) -> list[tuple[int, int, np.ndarray]]:
    """Digits as integers; none has more than 32 bits."""
    return [
        (i, j, np.asarray(digit).astype(np.int32))
        for i, digits in enumerate(deltas)
        for j, digit in enumerate(digits)
    ]


def _digest(circuit: Circuit, params: Any) -> str:
    """Tells these weights from others."""
    digest = hashlib.sha256(circuit.fingerprint.encode())
    words = circuit.weight_words(circuit.quantised_weights(params))
    for array in (*words, *itertools.chain(*circuit.constant_words(params))):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(folder: pathlib.Path, arrays: dict[str, Any]) -> None:
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    write_bytes(private_folder(folder) / _FILE, [whole.getbuffer()])


def _read(folder: pathlib.Path, circuit: Circuit) -> dict[str, Any]:
    try:
        archive = read_archive(folder / _FILE)
        theirs = str(archive["fingerprint"])
    except (CheckpointError, KeyError) as error:
        raise ProtocolError(
            f"{folder / _FILE}: no session can be read from it ({reason(error)})"
        ) from error
    if theirs != circuit.fingerprint:
        raise ProtocolError(
            f"{folder}: its session is one of another network or version ({theirs[:12]}, this one "
            f"is {circuit.fingerprint[:12]}); begin one in another folder"
        )
    return archive
