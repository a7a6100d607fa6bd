"""Keys made in one process are used in another, once; what is lost makes no mask return."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from primia_jax.config import MpcConfig
from primia_jax.errors import ProtocolError, StorageError
from primia_jax.mpc import inference
from primia_jax.mpc.ledger import Ledger
from primia_jax.mpc.protocols import CRYPTO_PROVIDER, DATA_OWNER, MODEL_OWNER, fss

PARTIES = (DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER)
LEDGERS = {
    DATA_OWNER: "data_owner/keys/ledger",
    MODEL_OWNER: "model_owner/keys/ledger",
    CRYPTO_PROVIDER: "crypto_provider/ledger",
}
IMAGES = np.random.default_rng(0).uniform(size=(4, 6)).astype(np.float32)


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(6, 40)).astype(np.float32),
        "b": rng.normal(size=(40, 3)).astype(np.float32),
    }


def fresh(params, **settings):
    """A program as a new process would make it."""
    config = MpcConfig(**settings)
    return inference.encrypt(apply_fn, params, IMAGES[:1], calibration=IMAGES, config=config)


@pytest.mark.parametrize("settings", ({}, {"sign_slack_bits": 2}))
def test_a_session_is_taken_up_again(tmp_path, settings):
    params = make_params()
    first = fresh(params, **settings)
    assert first.set_up(tmp_path / "s") is not None
    first.prepare(3)
    before, _ = first.run(IMAGES[:1])
    first.close()
    second = fresh(params, **settings)
    assert second.set_up(tmp_path / "s") is None
    stores = [second._driver.states[name].store for name in ("data_owner", "model_owner")]
    assert [store.available() for store in stores] == [2, 2]
    after, _ = second.run(IMAGES[:1])
    np.testing.assert_allclose(before, after, atol=0.02)
    np.testing.assert_allclose(after, apply_fn(params, IMAGES[:1]), atol=0.02)
    second.run(IMAGES[:1])
    assert [store.available() for store in stores] == [0, 0]
    second.run(IMAGES[:1])  # makes a key, with a number of its own
    second.close()
    third = fresh(params, **settings)
    third.set_up(tmp_path / "s")
    third.run(IMAGES[:1])


def test_other_weights_or_networks_are_refused(tmp_path):
    fresh(make_params()).set_up(tmp_path)
    with pytest.raises(ProtocolError, match="other weights"):
        program = fresh(make_params())
        program._params = make_params(1)
        program.set_up(tmp_path)
    with pytest.raises(ProtocolError, match="another network or version"):
        fresh(make_params(), ring_bits=24, effective_bits=12).set_up(tmp_path)
    (tmp_path / "model_owner" / "session.npz").write_bytes(b"")
    with pytest.raises(ProtocolError, match="no session can be read"):
        fresh(make_params()).set_up(tmp_path)


def test_weights_that_the_function_holds_are_told_apart_too(tmp_path):
    def program(params):
        return inference.encrypt(
            lambda _, x: apply_fn(params, x), {}, IMAGES[:1], calibration=IMAGES
        )

    first = make_params()
    program(first).set_up(tmp_path)
    swapped = {"a": first["a"][:, ::-1], "b": first["b"]}
    with pytest.raises(ProtocolError, match=r"other weights|another network"):
        program(swapped).set_up(tmp_path)


def test_secrets_are_for_their_owner_alone(tmp_path):
    program = fresh(make_params())
    program.set_up(tmp_path)
    program.prepare(1)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path


# --- what is lost


@pytest.fixture
def openings(monkeypatch):
    """The masked images that the model owner receives."""
    received, original = [], fss._masked_image

    def noted(*arguments):
        received.append(np.asarray(original(*arguments)))
        return received[-1]

    monkeypatch.setattr(fss, "_masked_image", noted)
    return received


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A session's folder after one diagnosis, with two keys left."""
    folder = tmp_path_factory.mktemp("kept") / "s"
    program = fresh(make_params())
    program.set_up(folder)
    program.prepare(3)
    program.run(IMAGES[:1])
    program.close()
    return folder


@pytest.fixture
def session(kept, tmp_path):
    return pathlib.Path(shutil.copytree(kept, tmp_path / "s"))


def resumed(folder):
    program = fresh(make_params())
    assert program.set_up(folder) is None
    return program


def stores(program):
    return [program._driver.states[party].store for party in (DATA_OWNER, MODEL_OWNER)]


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("lost", ["ledger", "folder of keys", "folder"])
def test_a_session_whose_ledger_is_missing_is_refused(session, party, lost):
    ledger = session / LEDGERS[party]
    if lost == "ledger":
        ledger.unlink()
    elif lost == "folder of keys" and party != CRYPTO_PROVIDER:
        shutil.rmtree(ledger.parent)
    else:
        shutil.rmtree(session / party)
    with pytest.raises(ProtocolError, match=r"begin a new session|no session can be read") as error:
        resumed(session)
    assert "\n" not in str(error.value)
    with pytest.raises(ProtocolError):  # nor does the first attempt put an empty one in its place
        resumed(session)


def test_no_mask_returns_when_all_ledgers_are_lost(session, openings):
    """Seeds as before, ledgers of the same session without a number: key 0 has other masks."""
    name = str(np.load(session / "data_owner" / "session.npz")["session"])
    for _ in range(2):
        for path in LEDGERS.values():
            for file in (session / path).parent.glob("ledger*"):
                file.unlink()
            Ledger(session / path, name)
        for keys in session.glob("*/keys/key_*"):
            shutil.rmtree(keys)
        program = resumed(session)
        program.run(IMAGES[:1])
        assert [store.ledger.next() for store in stores(program)] == [1, 1]  # number 0 again
        program.close()
    first, second = openings
    assert np.count_nonzero(first == second) == 0


@pytest.mark.parametrize("party", (DATA_OWNER, MODEL_OWNER))
def test_a_party_that_is_restored_from_a_backup_uses_no_key_again(
    session, tmp_path, party, openings
):
    backup = shutil.copytree(session / party, tmp_path / "backup")
    resumed(session).run(IMAGES[:1])  # key 1
    used = openings.pop()
    shutil.rmtree(session / party)
    shutil.copytree(backup, session / party)
    program = resumed(session)
    assert [store.ledger.next() > 1 for store in stores(program)] == [True, True]
    program.run(IMAGES[:1])
    assert np.count_nonzero(openings[0] == used) == 0


def test_owners_that_are_restored_together_use_no_key_from_before_the_last_start(session, tmp_path):
    """The crypto provider knows a later epoch than they do: their keys are dropped."""
    backup = shutil.copytree(session, tmp_path / "backup")
    resumed(session).run(IMAGES[:1])
    for party in (DATA_OWNER, MODEL_OWNER):
        shutil.rmtree(session / party)
        shutil.copytree(backup / party, session / party)
    program = resumed(session)
    assert [store.available() for store in stores(program)] == [0, 0]
    logits, _ = program.run(IMAGES[:1])
    np.testing.assert_allclose(logits, apply_fn(make_params(), IMAGES[:1]), atol=0.02)


def test_one_program_at_a_time_has_a_session_open(session, openings):
    """Two would use one key twice, once a ledger comes back from a backup under them."""
    program = resumed(session)
    with pytest.raises(StorageError, match="another program has this session open; close it") as e:
        resumed(session)
    assert "\n" not in str(e.value)
    program.run(IMAGES[:1])
    program.close()
    resumed(session).run(IMAGES[:1])
    assert np.count_nonzero(openings[0] == openings[1]) == 0


@pytest.mark.parametrize("party", (DATA_OWNER, MODEL_OWNER))
def test_no_image_is_sent_once_a_ledger_was_replaced(session, tmp_path, party, openings):
    """A folder that comes back from a backup takes its lock and its ledger along."""
    program = resumed(session)
    backup = shutil.copytree(session / party, tmp_path / "backup")
    shutil.rmtree(session / party)
    shutil.copytree(backup, session / party)
    with pytest.raises(ProtocolError, match="another file has taken its place"):
        program.run(IMAGES[:1])
    assert len(openings) == (party == MODEL_OWNER)


def test_folders_of_two_sessions_do_not_go_together(session, tmp_path):
    other = fresh(make_params())
    other.set_up(tmp_path / "other")
    shutil.rmtree(session / "data_owner")
    shutil.copytree(tmp_path / "other" / "data_owner", session / "data_owner")
    with pytest.raises(ProtocolError, match="resume different sessions: give all parties"):
        resumed(session)


def test_keys_of_an_earlier_epoch_still_serve(session):
    program = resumed(session)
    before = [program._driver.states[p].epoch.id for p in PARTIES]
    assert len(set(before)) == 1
    program.prepare(1)
    program.close()
    again = resumed(session)
    assert again._driver.states[DATA_OWNER].epoch.id != before[0]
    assert [store.available() for store in stores(again)] == [3, 3]
    for _ in range(4):  # of three epochs
        logits, _ = again.run(IMAGES[:1])
        np.testing.assert_allclose(logits, apply_fn(make_params(), IMAGES[:1]), atol=0.02)
