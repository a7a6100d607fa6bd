"""Who holds what: the same split in all settings, patients apart, the test set for the owner."""

import dataclasses
import traceback

import numpy as np
import pytest
from PIL import Image

from primia_jax.config import ExperimentConfig, from_config_dict
from primia_jax.data import make_plan, make_test_plan, plan
from primia_jax.errors import DataError
from primia_jax.federated.makers import party_makers
from primia_jax.workdir import Workdir


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


def pictures(root, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(root / name)
    return root


THREE = [f"{kind}/{i}.png" for kind in ("normal", "other", "viral") for i in range(8)]


@pytest.mark.parametrize("source", ["folder", "csv"])
def test_a_hospital_without_a_class_takes_part(tmp_path, source):
    """The run says which classes there are; labels keep their meaning at every hospital."""
    skewed = [name for name in THREE if "other" not in name]
    for folder, names in (("hospital_0", THREE), ("hospital_1", skewed), ("test", THREE)):
        pictures(tmp_path / folder, names, seed=len(folder) + len(names))
        kinds = {"normal": 0, "other": 1, "viral": 2}
        rows = [f"{folder}/{name},{kinds[name.split('/')[0]]}" for name in names]
        (tmp_path / f"{folder}.csv").write_text("\n".join(["path,label", *rows]))
    suffix = ".csv" if source == "csv" else ""
    experiment = config(
        source=source, path=f"{tmp_path}/{{site}}{suffix}", test_path=f"{tmp_path}/test{suffix}"
    )
    everybody = make_plan(
        dataclasses.replace(
            experiment, federated=dataclasses.replace(experiment.federated, hospitals=2)
        )
    )
    for site, counts in zip(everybody.sites, ([8, 8, 8], [8, 0, 8])):
        train, validation = site.load()
        assert train.class_names == everybody.class_names
        assert (train.class_counts() + validation.class_counts()).tolist() == counts


def test_a_test_set_may_lack_a_class(tmp_path):
    pictures(tmp_path / "all", THREE)
    pictures(tmp_path / "test", [name for name in THREE if "other" not in name], seed=1)
    experiment = config(
        source="folder", partition="iid", path=f"{tmp_path}/all", test_path=f"{tmp_path}/test"
    )
    assert make_plan(experiment).load_test(16).class_counts().tolist() == [8, 0, 8]
    judged = make_test_plan(experiment, ("normal", "other", "viral"))
    assert judged.load_test(16).class_counts().tolist() == [8, 0, 8]


def test_test_images_and_patients_are_not_trained_on(tmp_path):
    """Over two sources as within one: the same image, and another image of the same patient."""
    films = pictures(tmp_path / "films", THREE)
    other = pictures(tmp_path / "other", THREE, seed=1)

    def table(folder, header, ending):
        rows = [f"{n},{n.split('/')[0]},{ending(i)}" for i, n in enumerate(THREE)]
        (folder / "table.csv").write_text("\n".join([f"path,label,{header}", *rows]))
        return str(folder / "table.csv")

    def plan_of(**data):
        return make_plan(config(partition="iid", **data))

    with pytest.raises(DataError, match=r"24 of 24 test images show an image that is trained on"):
        plan_of(source="folder", path=str(films), test_path=str(films))
    numbers = table(films, "patient", lambda i: f"p{i}")
    same = {"source": "csv", "path": numbers}
    with pytest.raises(DataError, match=r"24 of 24 test images show a patient that is trained on"):
        plan_of(**same, test_path=table(other, "patient", lambda i: f"p{i}"))
    with pytest.raises(DataError, match=r"24 of 24 test images show a patient"):
        plan_of(**same, test_path=table(other, "patient,site", lambda i: f"p{i},north"))
    assert plan_of(**same, test_path=table(other, "patient", lambda i: f"q{i}")).sites
    trained = {"source": "csv", "path": table(films, "patient,site", lambda i: f"p{i},south")}
    assert plan_of(**trained, test_path=table(other, "patient,site", lambda i: f"p{i},north")).sites
    assert plan_of(source="folder", path=str(films), test_path=str(other)).sites


def test_evaluation_compares_patients_with_and_without_sites(tmp_path):
    """A number without a site can be that of any site; one with a site is that site's."""
    films, other = pictures(tmp_path / "films", THREE), pictures(tmp_path / "other", THREE, seed=1)

    def table(folder, header, ending):
        rows = [f"{n},{n.split('/')[0]},{ending(i)}" for i, n in enumerate(THREE)]
        (folder / "table.csv").write_text("\n".join([f"path,label,{header}", *rows]))
        return str(folder / "table.csv")

    trained = {"source": "csv", "partition": "iid"}
    path = table(films, "patient,site", lambda i: f"p{i},{'ns'[i % 2]}")
    directory = Workdir(tmp_path / "run")
    experiment = config(path=path, test_fraction=0.0, **trained)
    directory.begin(experiment, make_plan(experiment))

    def check(header, ending):
        judged = config(path=path, test_path=table(other, header, ending), **trained)
        return directory.check_unseen(make_test_plan(judged))

    for header, ending in (
        ("patient", lambda i: f"p{i}"),
        ("patient,site", lambda i: f"p{i},{'ns'[i % 2]}"),
    ):
        with pytest.raises(DataError, match="24 of 24 test patients have other images"):
            check(header, ending)
    assert check("patient,site", lambda i: f"p{i},elsewhere") == ""
    assert check("patient", lambda i: f"q{i}") == ""


def test_evaluation_says_that_hospitals_images_were_not_compared(tmp_path):
    """Where hospitals read their own paths only the training's test set was compared with them."""
    for i, folder in enumerate(("hospital_0", "hospital_1", "hospital_2", "test", "new")):
        pictures(tmp_path / folder, THREE, seed=i)
    paths = {"source": "folder", "path": f"{tmp_path}/{{site}}"}
    experiment = config(test_path=f"{tmp_path}/test", **paths)
    directory = Workdir(tmp_path / "run")
    directory.begin(experiment, make_plan(experiment))
    assert directory.check_unseen(make_test_plan(experiment)) == ""
    elsewhere = make_test_plan(config(test_path=f"{tmp_path}/new", **paths))
    assert "24 of 24 test images were never compared" in directory.check_unseen(elsewhere)


def test_a_hospital_refuses_test_images(tmp_path):
    """Where each hospital reads its own path, it alone can tell, and it alone learns the files."""
    pictures(tmp_path / "hospital_0", THREE)
    pictures(tmp_path / "hospital_1", THREE, seed=1)
    pictures(tmp_path / "test", THREE, seed=1)
    experiment = config(source="folder", path=f"{tmp_path}/{{site}}", test_path=f"{tmp_path}/test")
    everybody = make_plan(experiment)
    everybody.sites[0].load()
    with pytest.raises(DataError, match=r"(?s)hospital_1: 24 of 24 images .*: test images of the"):
        everybody.sites[1].load()
    makers = party_makers(experiment, everybody, tmp_path / "run")
    with pytest.raises(DataError, match=r"\(24 of 24 are test images of the") as caught:
        makers["hospital_1"]()
    assert ".png" not in "".join(traceback.format_exception(caught.value))
    report = tmp_path / "run" / "sites" / "hospital_1" / "errors.txt"
    assert "normal/0.png: test images" in report.read_text()


def test_a_hospital_without_a_folder_is_named_with_its_path(tmp_path):
    """The path is the operator's word; {site} is not the folders' names."""
    pictures(tmp_path / "A", THREE)
    pictures(tmp_path / "test", THREE, seed=1)
    experiment = config(source="folder", path=f"{tmp_path}/{{site}}", test_path=f"{tmp_path}/test")
    makers = party_makers(experiment, make_plan(experiment), tmp_path / "run")
    with pytest.raises(DataError, match=r"no such file or folder: .*/hospital_0; \{site\}.*stands"):
        makers["hospital_0"]()


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_classes_by_file_name_are_explained_where_one_is_missing(tmp_path, mode):
    """Nothing is trained in an evaluation, so that a class may lack training images."""
    root = tmp_path / "xray"
    normal = [
        f"{split}/NORMAL/IM-{i:04d}-0001.png" for split in ("train", "test") for i in range(6)
    ]
    kinds = (("train", "bacteria"), ("test", "bacteria"), ("test", "virus"))
    sick = [f"{s}/PNEUMONIA/person{i}_{k}_1.png" for s, k in kinds for i in range(6)]
    pictures(root, normal + sick)
    experiment = config(source="folder", partition="iid", path=str(root))
    if mode == "evaluate":
        assert make_test_plan(experiment).load_test(16).class_counts().tolist() == [6, 6, 6]
        return
    with pytest.raises(DataError, match=r"class viral has no record.*by bacteria or virus in the"):
        make_plan(experiment)


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


def test_why_a_hospitals_images_cannot_be_used_stays_with_it(tmp_path):
    """Names of files often hold a patient's name: others learn counts, and where to look."""
    for seed, name in enumerate(("hospital_0", "hospital_1", "test")):
        pictures(tmp_path / name, THREE, seed)
    broken = next((tmp_path / "hospital_1").rglob("*.png"))
    broken = broken.rename(broken.with_name("Mueller_Hans.png"))
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    experiment = config(source="folder", path=f"{tmp_path}/{{site}}", test_path=f"{tmp_path}/test")
    everybody = make_plan(experiment)
    makers = party_makers(experiment, everybody, tmp_path / "run")
    with pytest.raises(DataError, match=r"hospital_1: .* cannot be used \(1 of 24\)") as caught:
        makers["hospital_1"]()
    report = tmp_path / "run" / "sites" / "hospital_1" / "errors.txt"
    assert "Mueller" not in "".join(traceback.format_exception(caught.value))
    assert str(report) in str(caught.value) and "Mueller_Hans.png" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0
