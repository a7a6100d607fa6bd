"""Identities in a training: kept on site, met once or pinned, the same for the life of a run."""

import json
import stat

import pytest
import tiny

from primia_jax.core import identity
from primia_jax.errors import CheckpointError, ConfigError, ProtocolError
from primia_jax.federated import checkpoints, credentials

SECURE = {"federated": {"mode": "federated_secure", "rounds": 1}}
HOSPITALS = ("hospital_0", "hospital_1", "hospital_2")


@pytest.fixture(scope="module")
def secure():
    return tiny.config_with(**SECURE)


def sites(workdir):
    return {name: checkpoints.site_folder(workdir, name) for name in HOSPITALS}


def test_the_plan_is_what_parties_must_agree_on(secure):
    same = tiny.config_with(**SECURE, runtime={"threads": 3}, evaluation={"batch_size": 7})
    other = tiny.config_with(**SECURE, secure_aggregation={"clip": 99.0})
    assert credentials.plan_of(secure) == credentials.plan_of(same) != credentials.plan_of(other)


@pytest.mark.parametrize("content", ["null", "[]", "[" * 100_000, '{"a": '])
def test_a_damaged_list_of_identities_is_one_line(tmp_path, content):
    (tmp_path / credentials.IDENTITIES).write_text(content)
    with pytest.raises(CheckpointError, match=r"identities.json cannot be read .*restore"):
        credentials.record(tmp_path, {"a": "key"})


def test_a_run_records_who_took_part_and_refuses_another_key(tmp_path):
    """Keys lie with their hospitals; the operator's list is for people to compare."""
    federation = tiny.start(tmp_path, **SECURE)
    federation.set_up()
    shown = json.loads((tmp_path / credentials.IDENTITIES).read_text())
    for name, folder in sites(tmp_path).items():
        key = folder / identity.KEY_FILE
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert identity.load_or_make(folder, name).fingerprint == shown[name]
        peers = json.loads((folder / identity.PINS_FILE).read_text())
        assert peers == {peer: shown[peer] for peer in HOSPITALS if peer != name}
    federation.set_up()  # as after a loss: fresh session keys under the same identities
    assert json.loads((tmp_path / credentials.IDENTITIES).read_text()) == shown
    (sites(tmp_path)["hospital_1"] / identity.KEY_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"hospital_1 has the identity key .* records"):
        federation.set_up()
    (tmp_path / credentials.IDENTITIES).unlink()  # whatever the operator says
    with pytest.raises(ProtocolError, match=r"hospital_[02] refuses hospital_1: its identity key"):
        federation.set_up()


def test_pinned_hospitals_accept_nobody_else(tmp_path):
    keys = {name: identity.load_or_make(tmp_path / "keys" / name, name) for name in HOSPITALS}
    pins = {name: own.fingerprint for name, own in keys.items()}
    (tmp_path / "pins.json").write_text(json.dumps(pins))
    places = {
        "identities": str(tmp_path / "keys" / "{site}"),
        "pins": str(tmp_path / "pins.json"),
    }
    pinned = tiny.merged(SECURE, {"federated": places})
    tiny.start(tmp_path / "run", **pinned).set_up()
    assert not (sites(tmp_path / "run")["hospital_0"] / identity.KEY_FILE).exists()
    del pins["hospital_2"]
    (tmp_path / "pins.json").write_text(json.dumps(pins))
    with pytest.raises(ProtocolError, match=r"refuses hospital_2: no fingerprint of it is pinned"):
        tiny.start(tmp_path / "other", **pinned).set_up()
    pins["hospital_2"] = identity.make("x").fingerprint
    (tmp_path / "pins.json").write_text(json.dumps(pins))
    with pytest.raises(ConfigError, match="hospital_2 is pinned to"):
        tiny.start(tmp_path / "third", **pinned).set_up()


def test_every_party_has_credentials_of_its_own(secure, tmp_path):
    folders = credentials.training_folders(tmp_path, HOSPITALS)
    made = {name: make() for name, make in credentials.makers(secure, folders).items()}
    assert set(made) == {*HOSPITALS, "model_owner", "crypto_provider"}
    assert len({own.identity.public_key for own in made.values()}) == 5
    assert {own.plan for own in made.values()} == {credentials.plan_of(secure)}
