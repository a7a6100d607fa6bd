"""Who holds what: the same split in all settings, patients apart, the test set for the owner."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from primia_jax.config import ExperimentConfig, from_config_dict
from primia_jax.data import make_plan, make_test_plan, plan
from primia_jax.errors import DataError
from primia_jax.federated.federation import party_makers


def config(mode="federated", **data):
    phantom = {"n_train": 60, "n_test": 12}
    return from_config_dict(
        ExperimentConfig,
        {"data": {"image_size": 16, "phantom": phantom, **data}, "federated": {"mode": mode}},
    )


def names(dataset):
    return set(dataset.names)


def test_pooled_and_federated_share_one_split():
    """What separates the settings is who holds an image, not what it is used for."""
    federated, local = make_plan(config()), make_plan(config("local"))
    (pooled,) = local.sites
    for k in (0, 1):
        parts = [names(site.load()[k]) for site in federated.sites]
        assert set.union(*parts) == names(pooled.load()[k])
        assert sum(map(len, parts)) == len(set.union(*parts))
    assert pooled.site == plan.POOLED
    assert local.load_test(16).names == federated.load_test(16).names


def test_no_patient_is_in_two_places():
    everybody = make_plan(config())
    sets = [set(part.patients) for site in everybody.sites for part in site.load()]
    sets.append(set(everybody.load_test(16).patients))
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_the_summary_counts_what_is_loaded():
    everybody = make_plan(config())
    rows = {(row["site"], row["split"]): row for row in everybody.summary}
    for site in everybody.sites:
        for split, part in zip(("train", "validation"), site.load()):
            assert rows[site.site, split]["counts"] == list(part.class_counts())
            assert rows[site.site, split]["patients"] == len(set(part.patients))
    assert sum(rows["model owner", "test"]["counts"]) == 12


def test_own_paths_need_a_named_test_set():
    with pytest.raises(DataError, match=r"config\.data\.test_path"):
        make_plan(config(source="folder", path="/data/{site}"))


def test_a_judge_needs_a_test_set(tmp_path):
    assert len(make_test_plan(config()).test) == 12
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20)).astype(np.uint8)
            Image.fromarray(pixels + (kind == "b")).save(tmp_path / kind / f"{i}.png")
    with pytest.raises(DataError, match="there is no test set"):
        make_test_plan(
            config(source="folder", path=str(tmp_path), partition="iid", test_fraction=0.0)
        )


def test_a_hospital_with_labels_out_of_range_is_named():
    """Found where the data are, in the hospital's own process."""
    experiment = config()
    everybody = make_plan(experiment)
    catalogue = everybody.sites[1].catalogue
    labels = catalogue.labels.copy()
    labels[everybody.sites[1].train[0]] = 7
    bad = dataclasses.replace(
        everybody.sites[1], catalogue=dataclasses.replace(catalogue, labels=labels)
    )
    sites = (everybody.sites[0], bad, everybody.sites[2])
    makers = party_makers(experiment, dataclasses.replace(everybody, sites=sites))
    with pytest.raises(DataError, match=r"hospital_1 has a label outside 0…2"):
        makers["hospital_1"]()
