"""Layouts of folders give the right labels, patients and splits; mistakes give one clear line."""

import dataclasses
import itertools
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from image_sets import grey, save, save_dicom

from primia_jax.data import assign_splits, folders, load, open_catalogue
from primia_jax.errors import DataError


def opened(config, root, **changes):
    return open_catalogue(dataclasses.replace(config, path=str(root), **changes), 1, 0)


def by_name(catalogue, values):
    return dict(zip(catalogue.names, values))


@pytest.mark.parametrize("nested", ["", "chest_xray", "chest_xray/chest_xray"])
def test_kermany(kermany, folder_config, nested):
    """Bacterial and viral come from the file name; the download's nesting does not matter."""
    root = kermany(nested=nested)
    save(root / nested / "__MACOSX" / "train" / "NORMAL" / "._IM-0001-0001.jpeg", grey(1))
    (root / nested / "train" / ".DS_Store").write_bytes(b"x")
    catalogue = opened(folder_config, root)
    assert catalogue.class_names == ("normal", "bacterial", "viral")
    assert len(catalogue) == 24
    for name, label, split in zip(catalogue.names, catalogue.labels, catalogue.splits):
        expected = 1 if "bacteria" in name else 2 if "virus" in name else 0
        assert label == expected
        assert f"{split}/" in name
    assert catalogue.sites is None and catalogue.skipped == ()


def test_kermany_patients(kermany, folder_config):
    """person1 is one person within a set, and another one in the other set; NORMAL goes by IM."""
    root = kermany()
    for name in (
        "IM-0003-0002.jpeg",
        "NORMAL2-IM-0003-0001.jpeg",
        "NORMAL2-IM-0003-0001-0002.jpeg",
    ):
        save(root / "train" / "NORMAL" / name, grey(sum(name.encode())))
    patients = by_name(c := opened(folder_config, root), c.patients)
    pneumonia, normal = "train/PNEUMONIA/", "train/NORMAL/"
    assert patients[pneumonia + "person1_bacteria_1.jpeg"] == "train/person1"
    assert patients[pneumonia + "person1_virus_1.jpeg"] == "train/person1"
    assert patients["test/PNEUMONIA/person1_virus_1.jpeg"] == "test/person1"
    assert patients[normal + "IM-0003-0001.jpeg"] == patients[normal + "IM-0003-0002.jpeg"]
    second = patients[normal + "NORMAL2-IM-0003-0001.jpeg"]
    assert second == patients[normal + "NORMAL2-IM-0003-0001-0002.jpeg"] == "train/NORMAL2-IM-0003"
    assert second != patients[normal + "IM-0003-0001.jpeg"]


def test_kermany_numbers_in_both_sets_are_remarked_on(kermany, folder_config):
    """They count as different people; who knows better can see it."""
    root = kermany(("train", "test"))
    for i, split in enumerate(("train", "test")):
        kind = ("bacteria", "virus")[i]
        save(root / split / "PNEUMONIA" / f"person1019_{kind}_{i}.jpeg", grey(900 + i))
    shared = [r for r in opened(folder_config, root).remarks if "both training and test" in r]
    assert len(shared) == 1 and "1019" not in shared[0]


def test_kermany_val_returns_to_train(kermany, folder_config):
    """The 16 images of `val` hold no viral case and share patients with train."""
    root = kermany(("train", "test", "val"))
    for file in (root / "val" / "PNEUMONIA").glob("*virus*"):
        file.unlink()
    catalogue = opened(folder_config, root)
    assert set(catalogue.splits) == {"train", "test"}
    patients = by_name(catalogue, catalogue.patients)
    assert patients["val/PNEUMONIA/person1_bacteria_1.jpeg"] == "train/person1"


def test_kermany_without_splits(kermany, folder_config):
    """The folder of one split opened by itself: nothing is fixed."""
    catalogue = opened(folder_config, kermany() / "test")
    assert catalogue.splits is None and len(catalogue) == 12
    assert catalogue.class_names == folders.KERMANY_CLASSES


def test_kermany_name_without_kind(kermany, folder_config):
    """A pneumonia that is neither bacterial nor viral by name is reported, not guessed."""
    root = kermany()
    save(root / "train" / "PNEUMONIA" / "person9.jpeg", grey(900))
    with pytest.raises(DataError, match=r"(?s)1 of 25 .*person9.jpeg: neither bacteria nor virus"):
        opened(folder_config, root)
    catalogue = opened(folder_config, root, on_error="skip")
    assert len(catalogue) == 24 and catalogue.skipped[0][0] == "train/PNEUMONIA/person9.jpeg"


VERSION_3 = {"NORMAL": "NORMAL", "BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}


def version_3(root, splits=("train",)):
    """Three images each of two patients a class and split, named as version 3 names them."""
    numbers = itertools.count()
    for split in splits:
        for k, (kind, folder) in enumerate(VERSION_3.items()):
            for patient in (f"{k}008087", f"{k}20" if split == "train" else f"{k}21"):
                for image in (1, 2, 3):
                    name = f"{kind}-{patient}-{image:04}.jpeg"
                    save(root / "chest_xray" / split / folder / name, grey(next(numbers)))
    return root


def test_kermany_version_3(tmp_path, folder_config):
    """Kind and patient stand in the file name; a patient number is the same in all sets."""
    root = version_3(tmp_path, ("train", "test"))
    catalogue = opened(folder_config, root)
    assert catalogue.class_names == folders.KERMANY_CLASSES
    assert np.bincount(catalogue.labels).tolist() == [12, 12, 12]
    patients = by_name(catalogue, catalogue.patients)
    assert set(Counter(patients.values()).values()) == {3, 6}  # 6: in both sets, to be noticed
    with pytest.raises(DataError, match="the same patient, in two splits"):
        assign_splits(catalogue, 0.2, 0.2, 0)
    (remark,) = catalogue.remarks
    assert "bacterial and viral (folder PNEUMONIA, by bacteria or virus" in remark


def test_kermany_version_3_in_the_wrong_folder(tmp_path, folder_config):
    """A kind that contradicts its folder is reported, not guessed."""
    save(version_3(tmp_path) / "chest_xray/train/NORMAL/VIRUS-77-0001.jpeg", grey(900))
    with pytest.raises(DataError, match=r"VIRUS-77-0001.jpeg: VIRUS in the name, in the folder"):
        opened(folder_config, tmp_path)


@pytest.mark.parametrize("kept", ["NORMAL", "PNEUMONIA"])
def test_part_of_kermany(kermany, folder_config, kept):
    """A hospital that has one of the Kermany folders takes part where the run has its classes."""
    root = kermany(("train",))
    for folder in (root / "train").iterdir():
        if folder.name != kept:
            shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"only one class .*config\.data\.classes"):
        opened(folder_config, root)
    catalogue = open_catalogue(
        dataclasses.replace(folder_config, path=str(root)),
        1,
        0,
        class_names=folders.KERMANY_CLASSES,
    )
    assert catalogue.class_names == folders.KERMANY_CLASSES
    assert set(catalogue.labels) == ({0} if kept == "NORMAL" else {1, 2})


def test_unknown_patients_are_said(tmp_path, folder_config):
    """Where each image counts as a patient of its own, the user is warned."""
    for i in range(4):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", grey(i))
    (remark,) = opened(folder_config, tmp_path).remarks
    assert "4 of 4 images name no patient" in remark
    save(tmp_path / "a" / "p1" / "5.png", grey(5))
    assert "4 of 5 images" in opened(folder_config, tmp_path).remarks[0]


def test_declared_classes(tmp_path, folder_config):
    """A declared class may be missing or empty; a folder that is none of them is refused."""
    for i in range(4):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", grey(i))
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"no images of class c; .*config\.data\.classes"):
        opened(folder_config, tmp_path)
    catalogue = opened(folder_config, tmp_path, classes=("x", "b", "a", "c"))
    assert catalogue.class_names == ("x", "b", "a", "c")
    assert sorted(catalogue.labels) == [1, 1, 2, 2]
    with pytest.raises(DataError, match=r"c is none of the run's classes \(a, b\)"):
        opened(folder_config, tmp_path, classes=("a", "b"))


def test_class_folders_that_differ_in_case(tmp_path, folder_config):
    for i, name in enumerate(("viral", "Viral", "normal")):
        save(tmp_path / name / f"{i}.png", grey(i))
    with pytest.raises(DataError, match=r"'Viral' and 'viral' differ only in case or spaces"):
        opened(folder_config, tmp_path)


def test_one_image_under_two_labels(tmp_path, folder_config):
    """Which label is right cannot be known: both files are named and, if asked for, left out."""
    for i, path in enumerate(("a/1.png", "b/2.bmp", "a/3.png", "b/4.png")):
        save(tmp_path / path, grey(max(i, 1)))
    with pytest.raises(DataError, match=r"(?s)2 of 4 .*a/1.png: the same image as b/2.bmp, which"):
        opened(folder_config, tmp_path)
    assert opened(folder_config, tmp_path, on_error="skip").names == ("a/3.png", "b/4.png")


def test_one_folder_a_class(tmp_path, folder_config):
    """Class names are sorted; each file is its own patient; suffixes and depths may differ."""
    save(tmp_path / "sick" / "b.png", grey(1).astype(np.uint16) * 257)
    save(tmp_path / "sick" / "c.tiff", grey(2))
    save(tmp_path / "healthy" / "d.bmp", grey(3))
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "sick" / "notes.txt").write_text("about")
    catalogue = opened(folder_config, tmp_path)
    assert catalogue.class_names == ("healthy", "sick")
    assert catalogue.names == ("healthy/d.bmp", "sick/b.png", "sick/c.tiff")
    assert catalogue.labels.tolist() == [0, 1, 1]
    assert len(set(catalogue.patients)) == 3
    images = load(catalogue, np.arange(3), 16).images
    assert images.dtype == np.uint16


def test_two_class_pneumonia(tmp_path, folder_config):
    """NORMAL and PNEUMONIA without bacteria or virus in any name are two ordinary classes."""
    save(tmp_path / "NORMAL" / "a.png", grey(1))
    save(tmp_path / "PNEUMONIA" / "b.png", grey(2))
    assert opened(folder_config, tmp_path).class_names == ("NORMAL", "PNEUMONIA")


def test_patient_folders_and_splits(tmp_path, folder_config):
    """CLASS/PATIENT/FILE names patients, over classes and splits alike."""
    for i, path in enumerate(
        ["Train/a/p1/1.png", "Train/a/p1/2.png", "Train/b/p1/3.png", "Train/b/p2/x/4.png",
         "validation/a/p3/5.png", "Test/b/6.png"]
    ):  # fmt: skip
        save(tmp_path / path, grey(i))
    catalogue = opened(folder_config, tmp_path)
    assert by_name(catalogue, catalogue.splits) == {
        "Train/a/p1/1.png": "train",
        "Train/a/p1/2.png": "train",
        "Train/b/p1/3.png": "train",
        "Train/b/p2/x/4.png": "train",
        "validation/a/p3/5.png": "validation",
        "Test/b/6.png": "test",
    }
    patients = by_name(catalogue, catalogue.patients)
    assert len({patients[n] for n in patients if "/p1/" in n}) == 1
    assert len(set(patients.values())) == 4


def test_dicom_in_folders(tmp_path, folder_config):
    """DICOM beside PNG, found by content; its PatientID names the patient, never in clear."""
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20)
    save_dicom(tmp_path / "a" / "IM1", ramp, PatientID="Doe")
    save_dicom(tmp_path / "b" / "IM2.dcm", ramp + 1, PatientID="Doe")
    save(tmp_path / "b" / "c.png", grey(1))
    catalogue = opened(folder_config, tmp_path)
    patients = by_name(catalogue, catalogue.patients)
    assert patients["a/IM1"] == patients["b/IM2.dcm"] != patients["b/c.png"]
    assert "Doe" not in repr(catalogue)


def test_dicom_source(tmp_path, folder_config):
    """The source `dicom` takes DICOM only, and sites from InstitutionName if all have one."""
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20)
    for i, place in enumerate(["North", "South"]):
        for label in ("a", "b"):
            path = tmp_path / label / f"{place}.dcm"
            save_dicom(path, ramp + i + 7 * (label == "a"), InstitutionName=place, PatientID=place)
    catalogue = opened(folder_config, tmp_path, source="dicom")
    assert sorted(catalogue.sites) == ["North", "North", "South", "South"]
    assert len(set(catalogue.patients)) == 2
    save_dicom(tmp_path / "a" / "unknown.dcm", ramp + 99)
    assert opened(folder_config, tmp_path, source="dicom").sites is None
    save(tmp_path / "a" / "x.png", grey(1))
    with pytest.raises(DataError, match=r"(?s)a/x.png: an image, but not a DICOM file"):
        opened(folder_config, tmp_path, source="dicom")


def test_identical_images_have_identical_digests(tmp_path, folder_config):
    save(tmp_path / "a" / "1.png", grey(1))
    save(tmp_path / "a" / "2.bmp", grey(1))
    save(tmp_path / "b" / "3.png", grey(2))
    one, two, three = opened(folder_config, tmp_path).digests
    assert one == two != three


def test_each_file_is_decoded_once(tmp_path, folder_config, monkeypatch):
    """Opening and then loading a set decodes every image once; other sizes read the file again."""
    for i in range(6):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", grey(i))
    decoded = []
    original = folders.file_catalogue.image_files.decode

    def counting(content, *rest):
        decoded.append(len(content))
        return original(content, *rest)

    monkeypatch.setattr(folders.file_catalogue.image_files, "decode", counting)
    catalogue = opened(folder_config, tmp_path)
    copy = pickle.loads(pickle.dumps(catalogue))
    first = load(catalogue, np.arange(6), folder_config.image_size).images
    assert len(decoded) == 6
    again = load(catalogue, np.arange(6), folder_config.image_size).images
    assert len(decoded) == 12
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, load(copy, np.arange(6), folder_config.image_size).images)
    assert load(catalogue, np.arange(2), 9).images.shape == (2, 9, 9, 1)


def test_unreadable_files_are_listed_at_once(tmp_path, folder_config):
    """All of them with reasons, the first twenty in full; or skipped and remembered."""
    for i in range(4):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", grey(i))
    for i in range(25):
        (tmp_path / "a" / f"broken{i:02}.png").write_bytes(b"" if i % 2 else b"what")
    with pytest.raises(DataError) as caught:
        opened(folder_config, tmp_path)
    lines = str(caught.value).splitlines()
    assert "25 of 29 images cannot be used" in lines[0] and "on_error = 'skip'" in lines[0]
    assert lines[1].strip() == "a/broken00.png: not an image in a known format"
    assert lines[2].strip() == "a/broken01.png: empty file"
    assert lines[-1].strip() == "and 5 more" and len(lines) == 22
    catalogue = opened(folder_config, tmp_path, on_error="skip")
    assert len(catalogue) == 4 and len(catalogue.skipped) == 25
    images = load(catalogue, np.arange(4), 40).images[..., 0]
    for name, image in zip(catalogue.names, images):
        expected = folders.image_files.fit(grey(int(name[2])), 40)
        np.testing.assert_array_equal(image, expected)


def test_file_that_vanishes_after_opening(tmp_path, folder_config):
    for i in range(2):
        save(tmp_path / "ab"[i] / f"{i}.png", grey(i))
    catalogue = opened(folder_config, tmp_path)
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(DataError, match="no longer"):
        load(catalogue, np.array([0]), 9)


@pytest.mark.parametrize(
    ("classes", "files", "message"),
    [
        ([], [], "no folders of classes"),
        ([], ["a/notes.txt", "b/notes.txt"], "no images found"),
        (["a"], ["b/notes.txt"], "no images of class b"),
        (["a"], [], "only one class .a."),
        (["train/a", "train/b", "other"], [], "other beside train"),
    ],
    ids=["empty", "no images", "empty class", "one class", "mixed layout"],
)
def test_mistakes(tmp_path, folder_config, classes, files, message):
    for name in classes:
        save(tmp_path / name / "1.png", grey(len(name)))
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=message) as caught:
        opened(folder_config, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_class_that_only_has_broken_files(tmp_path, folder_config):
    save(tmp_path / "a" / "1.png", grey(1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no images of class b once 1 unreadable"):
        opened(folder_config, tmp_path, on_error="skip")


def test_missing_folder(tmp_path, folder_config):
    with pytest.raises(DataError, match="no such folder"):
        opened(folder_config, tmp_path / "none")
    save(tmp_path / "a.png", grey(1))
    with pytest.raises(DataError, match="is a file"):
        opened(folder_config, tmp_path / "a.png")


def test_images_outside_the_folders_of_classes_are_listed(kermany, tmp_path, folder_config):
    """Loose files at any level above the classes, in any layout; none vanishes."""
    save(tmp_path / "plain" / "a" / "1.png", grey(1))
    save(tmp_path / "plain" / "b" / "2.webp", grey(2), lossless=True)
    save(tmp_path / "plain" / "loose.png", grey(3))
    root = kermany(nested="chest_xray")
    save(root / "chest_xray" / "train" / "loose.png", grey(4))
    save(root / "loose.gif", grey(5))
    for folder, names in (
        (tmp_path / "plain", ["loose.png"]),
        (root, ["chest_xray/train/loose.png", "loose.gif"]),
    ):
        with pytest.raises(DataError, match=f"(?s){len(names)} of .*{names[0]}: in no folder of a"):
            opened(folder_config, folder)
        catalogue = opened(folder_config, folder, on_error="skip")
        assert [name for name, _ in catalogue.skipped] == names
        assert not set(names) & set(catalogue.names)
