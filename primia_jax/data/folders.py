"""Folders of images: the Kermany chest radiographs, and any layout of one folder a class.

Accepted, with or without a folder `chest_xray` around it:

    [train|test|val/]NORMAL|PNEUMONIA/FILE   Kermany: bacterial or viral stands in the file name,
                                             as person1_virus_6 or as VIRUS-1008087-0001
    [train|test|val/]CLASS/FILE              each image is its own patient
    [train|test|val/]CLASS/PATIENT/FILE      images in one folder are one patient's

Source of the Kermany layout: Kermany et al., Cell 172 (2018), data set "Labeled Optical Coherence
Tomography (OCT) and Chest X-Ray Images".
"""

import dataclasses
import pathlib
import re
from typing import NamedTuple

from primia_jax.config.sections import DataConfig
from primia_jax.data import file_catalogue, image_files
from primia_jax.data.catalogue import TEST, TRAIN, VALIDATION, Catalogue
from primia_jax.data.file_catalogue import Entry
from primia_jax.errors import DataError

KERMANY_CLASSES = ("normal", "bacterial", "viral")
KERMANY_NOTE = (
    "the classes are normal (folder NORMAL), and bacterial and viral (folder PNEUMONIA, by "
    "bacteria or virus in the file's name)"
)
_KERMANY_FOLDERS = {"normal", "pneumonia"}
_KINDS = {"bacteria": 1, "virus": 2}
_PNEUMONIA_NAME = re.compile(r"(person\d+)_(bacteria|virus)", re.IGNORECASE)
_NORMAL_NAME = re.compile(r"((?:[a-z0-9]+-)*IM-\d+)", re.IGNORECASE)
_VERSION_3_NAME = re.compile(r"(NORMAL|BACTERIA|VIRUS)-(\d+)-\d+", re.IGNORECASE)

SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


class Listing(NamedTuple):
    """The images of a folder before any is opened."""

    entries: list[Entry]  # [n]
    paths: list[str]  # [n]
    class_names: tuple[str, ...]
    skipped: list[tuple[str, str]]  # (name, reason)
    remarks: tuple[str, ...] = ()  # assumptions that a user should check


def open_folder(
    path: str,
    data: DataConfig,
    dicom_only: bool = False,
    class_names: tuple[str, ...] = (),
) -> Catalogue:
    """The catalogue of the images below `path`; see `list_folder` for the layouts.

    Raises:
      DataError: as `list_folder` and `file_catalogue.assemble`.
    """
    listing = list_folder(path, class_names)
    where = f"folder {path}"
    decode = file_catalogue.FileDecoder(tuple(listing.paths), data, dicom_only)
    catalogue = file_catalogue.assemble(
        listing.entries,
        listing.class_names,
        decode,
        data,
        where,
        listing.skipped,
        declared=bool(class_names),
    )
    remarks = tuple(f"{where}: {text}" for text in listing.remarks)
    return dataclasses.replace(catalogue, remarks=(*catalogue.remarks, *remarks))


def list_folder(path: str, class_names: tuple[str, ...] = ()) -> Listing:
    """The images below `path`, with their labels, patients and splits.

    In the Kermany layout (folders NORMAL and PNEUMONIA) the classes are normal, bacterial and
    viral, and the data set's two namings are read:

    - `personN_bacteria_M`, `personN_virus_M`, `IM-N-M`: the patient is `SPLIT/personN` or
      `SPLIT/IM-N`. `person1` of the training and of the test set are two people, since each set was
      numbered by itself. Within a set, `personN_bacteria` and `personN_virus` count as one patient:
      if they are not, nothing is lost by keeping them together.
    - version 3, `BACTERIA-N-M`, `VIRUS-N-M`, `NORMAL-N-M`: the patient is N in all sets.

    The folder `val` of the common download (16 images, none of them viral) was taken from the
    training set and returns to it. Elsewhere the classes are the folders' names in alphabetical
    order.

    Args:
      path: the folder.
      class_names: the run's classes, of which this folder may lack some; empty: those found here.

    Raises:
      DataError: if there is no such folder or no image, or a layout other than the above.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(
            f"folder {path}: {problem}; check config.data.path and config.data.test_path"
        )
    top = _unwrapped(root)
    folders = _subfolders(top)
    split_folders = [f for f in folders if f.name.lower() in SPLIT_NAMES]
    if not folders:
        raise DataError(f"folder {path}: no folders of classes in it (expected CLASS/FILE)")
    if split_folders and len(split_folders) < len(folders):
        others = ", ".join(f.name for f in folders if f not in split_folders)
        raise DataError(
            f"folder {path}: {others} beside {split_folders[0].name}; expected either folders "
            "train, test, val or one folder a class"
        )
    groups = [(f, SPLIT_NAMES[f.name.lower()]) for f in split_folders] or [(top, "")]
    classes = {name for folder, _ in groups for name in _class_names(folder)}
    images = [
        _Image(file, split, class_folder.name, file.relative_to(class_folder).parts)
        for folder, split in groups
        for class_folder in _subfolders(folder)
        for file in image_files.walk(class_folder)
        if image_files.is_candidate(file)
    ]
    if not images:
        raise DataError(f"folder {path}: no images found")
    loose = _loose(root, images)
    if _is_kermany(images, classes, class_names):
        listing = _kermany(images, root, _split_of(top))
        return listing._replace(skipped=[*listing.skipped, *loose])
    unknown = sorted(classes.difference(class_names)) if class_names else []
    if unknown:
        raise DataError(
            f"folder {path}: {', '.join(unknown)} is none of the run's classes "
            f"({', '.join(class_names)}); rename the folder, or name all classes in "
            "config.data.classes"
        )
    listing = _one_folder_a_class(images, list(class_names) or sorted(classes), root)
    return listing._replace(skipped=loose)


def _loose(root: pathlib.Path, images: list["_Image"]) -> list[tuple[str, str]]:
    """Names below `root` of images that lie in no folder of a class, each with that reason."""
    used = {image.file for image in images}
    return [
        (file.relative_to(root).as_posix(), "in no folder of a class")
        for file in image_files.walk(root)
        if file not in used and image_files.is_candidate(file)
    ]


class _Image(NamedTuple):
    file: pathlib.Path
    split: str
    class_name: str
    parts: tuple[str, ...]  # of the path below the class's folder


def _is_kermany(images: list[_Image], classes: set[str], class_names: tuple[str, ...]) -> bool:
    """True for the Kermany folders, all of them or those that a hospital of such a run has."""
    folders = {name.lower() for name in classes}
    if class_names:
        return class_names == KERMANY_CLASSES and folders <= _KERMANY_FOLDERS
    return folders == _KERMANY_FOLDERS and any(
        _PNEUMONIA_NAME.match(image.file.name) or _VERSION_3_NAME.match(image.file.name)
        for image in images
        if image.class_name.lower() == "pneumonia"
    )


def _split_of(folder: pathlib.Path) -> str:
    """The split that `folder` itself is named after, or "all"."""
    return SPLIT_NAMES.get(folder.resolve().name.lower(), "all")


def _kermany(images: list[_Image], root: pathlib.Path, whole: str) -> Listing:
    """The listing; `whole` stands for the split in patients' names where there are no splits."""
    listing = Listing([], [], KERMANY_CLASSES, [])
    for image in images:
        name = image.file.relative_to(root).as_posix()
        split = TRAIN if image.split == VALIDATION else image.split
        normal = image.class_name.lower() == "normal"
        version_3 = _VERSION_3_NAME.match(image.file.name)
        match = (_NORMAL_NAME if normal else _PNEUMONIA_NAME).match(image.file.name)
        kind = (
            version_3[1].lower() if version_3 else match[2].lower() if match and not normal else ""
        )
        if version_3 and normal != (kind == "normal"):
            reason = f"{version_3[1]} in the name, in the folder {image.class_name}"
            listing.skipped.append((name, reason))
            continue
        if not normal and not kind:
            listing.skipped.append((name, "neither bacteria nor virus in the name"))
            continue
        label = 0 if normal else _KINDS[kind]
        patient = None
        if version_3:
            patient = version_3[2]
        elif match:
            patient = f"{split or whole}/{match[1]}"
        listing.entries.append(Entry(name, label, patient, split=split))
        listing.paths.append(str(image.file))
    return listing._replace(remarks=(KERMANY_NOTE, *_numbers_in_two_sets(listing.entries)))


def _numbers_in_two_sets(entries: list[Entry]) -> list[str]:
    """A remark that counts the numbers of people in training and test set, if there are any."""
    sets: dict[str, set[str]] = {TRAIN: set(), TEST: set()}
    for entry in entries:
        split, _, number = (entry.patient or "").rpartition("/")
        if split in sets:
            sets[split].add(number)
    shared = len(sets[TRAIN] & sets[TEST])
    if not shared:
        return []
    return [
        f"{shared} numbers of people in file names stand in both training and test set; they count "
        "as different people, since that data set numbers each set by itself"
    ]


def _one_folder_a_class(images: list[_Image], classes: list[str], root: pathlib.Path) -> Listing:
    listing = Listing([], [], tuple(classes), [])
    for image in images:
        name = image.file.relative_to(root).as_posix()
        # Neither class nor split is part of the identifier: one patient may have images in two
        # classes, and a patient in two splits has to be noticed.
        patient = image.parts[0] if len(image.parts) > 1 else None
        label = classes.index(image.class_name)
        listing.entries.append(Entry(name, label, patient, split=image.split))
        listing.paths.append(str(image.file))
    return listing


def _unwrapped(root: pathlib.Path) -> pathlib.Path:
    """The folder that holds the splits or classes: below any `chest_xray` of the download."""
    while True:
        folders = {folder.name.lower(): folder for folder in _subfolders(root)}
        if "chest_xray" not in folders or SPLIT_NAMES.keys() & folders.keys():
            return root
        root = folders["chest_xray"]


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"folder {folder}: {reason}") from error
    return [f for f in children if f.is_dir() and not image_files.is_ignored(f)]


def _class_names(folder: pathlib.Path) -> list[str]:
    return [f.name for f in _subfolders(folder)]
