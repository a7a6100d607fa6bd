"""From a list of images to a catalogue: every image is decoded once, before anything is trained.

What cannot be used is reported all at once. Axis letters: n records, s image side.
"""

import collections
import dataclasses
import os
import threading
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from primia_jax.config.sections import DataConfig
from primia_jax.data import image_files, spelling
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.decoded import Fitted
from primia_jax.data.image_files import Decoded, ImageError
from primia_jax.errors import DataError

KEPT_BYTES = 1 << 28  # of fitted images that verification leaves for the first reading
OWN_PATIENT = "file:"  # begins the patient of an image whose patient nobody names, and no other
_LISTED_FILES = 20
_THREADS = 2

Decoder = Callable[[int], Decoded]


class Entry(NamedTuple):
    """Metadata of an image that a layout, a table or a data set gives before it is decoded."""

    name: str
    label: int
    patient: str | None = None  # None: the DICOM header's, or else the image is its own patient
    site: str | None = None  # None: the DICOM header's institution, if every image has one
    split: str = ""


@dataclasses.dataclass(frozen=True)
class FileDecoder:
    """Decodes the image files at `paths`; `dicom_only` refuses other kinds."""

    paths: tuple[str, ...]  # [n]
    data: DataConfig  # the settings of the DICOM guard
    dicom_only: bool = False

    def __call__(self, record: int) -> Decoded:
        """The image of `record`; ImageError says why there is none."""
        path = self.paths[record]
        content = image_files.read_bytes(path)
        suffix = os.path.splitext(path)[1]
        if self.dicom_only and image_files.kind_of(content) == "image":
            raise ImageError("an image, but not a DICOM file")
        return image_files.decode(content, ".dcm" if self.dicom_only else suffix, self.data)


class Reader:
    """`Catalogue.read`: fitted images; those that verification made are handed out first.

    A verified image of the side `kept_side` is kept until it is first read, so that opening and
    loading a set decode each image once. Copies sent to another process start with nothing kept.
    """

    def __init__(self, decode: Decoder, kept_side: int, kept: dict[int, Fitted]):
        self._decode = decode
        self._kept_side = kept_side
        self._kept = kept

    def __call__(self, record: int, side: int) -> Fitted:
        """The image as a square; DataError if it has become unreadable."""
        if side == self._kept_side:
            image = self._kept.pop(record, None)
            if image is not None:
                return image
        try:
            return image_files.fit_decoded(self._decode(record), side)
        except ImageError as error:
            raise DataError(
                f"image {record} could be read when the data were opened, and no longer: {error}"
            ) from error

    def __reduce__(self) -> tuple:
        return Reader, (self._decode, self._kept_side, {})


def assemble(
    entries: Sequence[Entry],
    class_names: Sequence[str],
    decode: Decoder,
    data: DataConfig,
    where: str,
    skipped: Sequence[tuple[str, str]] = (),
    *,
    declared: bool = False,
) -> Catalogue:
    """Decodes every entry once and makes the catalogue of those that can be read.

    A patient number counts within its site: the same number at two sites is two patients.

    Args:
      entries: [n] in the order of the records; names are unique.
      class_names: what labels index.
      decode: (index of an entry) -> its image; called from several threads.
      data: `image_size` and `on_error` are used.
      where: the source, for messages.
      skipped: (name, reason) of images that are already known to be unusable.
      declared: True if the class names come from the run, so that this source may lack some.

    Raises:
      DataError: for unreadable images, all of them in one message, unless `data.on_error` is
        "skip"; for an empty source, fewer than two classes, or a class without images that is not
        declared; for classes or sites that differ only in case or spaces; for patients and sites
        with control characters or a name that begins with `OWN_PATIENT`.

    An image that stands under two labels cannot be used.
    """
    if not entries and not skipped:
        raise DataError(f"{where}: no images found")
    check_classes(entries, class_names, where, declared=declared)
    checks, kept = _verify(decode, len(entries), data.image_size)
    checks = _without_contradictions(entries, checks)
    bad = [(e.name, c) for e, c in zip(entries, checks) if isinstance(c, str)]
    bad = sorted([*skipped, *bad])
    if bad and data.on_error == "fail":
        raise UnusableImages(bad, len(entries) + len(skipped), where)
    good = [i for i, check in enumerate(checks) if isinstance(check, _Verified)]
    check_classes([entries[i] for i in good], class_names, where, len(bad), declared=declared)
    usable = [(entries[i], check) for i, check in enumerate(checks) if isinstance(check, _Verified)]
    splits = np.array([entry.split for entry, _ in usable])
    _check_identities(usable, where)
    sites = _sites(usable, where)
    patients = _patients(usable, sites)
    return Catalogue(
        names=tuple(entry.name for entry, _ in usable),
        labels=np.array([entry.label for entry, _ in usable], np.int32),
        patients=patients,
        sites=sites,
        splits=splits if splits.astype(bool).any() else None,
        class_names=tuple(class_names),
        read=Reader(
            _Selected(decode, tuple(good)),
            data.image_size,
            {record: kept[i] for record, i in enumerate(good) if i in kept},
        ),
        digests=tuple(check.digest for _, check in usable),
        skipped=tuple(bad),
        remarks=(*_remarks(patients, where), *_doubts(usable, where)),
    )


def check_classes(
    entries: Sequence[Entry],
    class_names: Sequence[str],
    where: str,
    n_skipped: int = 0,
    *,
    declared: bool = False,
) -> None:
    """DataError unless there are two classes or more and, if not `declared`, each has an image."""
    left = f" once {n_skipped} unreadable files are left out" if n_skipped else ""
    if len(class_names) < 2:
        names = ", ".join(class_names)
        raise DataError(
            f"{where}: only one class ({names}); two or more are needed to tell apart. If others "
            "are elsewhere, name them all: config.data.classes"
        )
    hidden = [name for name in class_names if not name.isprintable()]
    if hidden:
        raise DataError(
            f"{where}: the class {hidden[0]!r} has letters that are not shown; rename it"
        )
    pair = spelling.alike(class_names)
    if pair:
        raise DataError(
            f"{where}: the classes {pair[0]!r} and {pair[1]!r} differ only in case or spaces; "
            "write them alike, or rename one"
        )
    counts = np.bincount([entry.label for entry in entries], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts) if not count]
    if empty and not declared:
        raise DataError(
            f"{where}: no images of class {', '.join(empty)}{left}; add some, remove the "
            "class, or name all classes of the run: config.data.classes"
        )


_MEND_OR_SKIP = "mend or remove them, or set config.data.on_error = 'skip'"


def unreadable(
    bad: Sequence[tuple[str, str]], total: int, where: str, advice: str = _MEND_OR_SKIP
) -> str:
    """The message that lists unreadable images with reasons, at most `_LISTED_FILES` of them."""
    lines = [f"{where}: {len(bad)} of {total} images cannot be used; {advice}"]
    lines += [f"  {name}: {reason}" for name, reason in bad[:_LISTED_FILES]]
    if len(bad) > _LISTED_FILES:
        lines.append(f"  and {len(bad) - _LISTED_FILES} more")
    return "\n".join(lines)


class UnusableImages(DataError):
    """Images that cannot be used, listed by name; only the attributes may leave a hospital.

    Attributes:
      count: number of them.
      total: number of images in all.
      kind: what is wrong with all of them alike; or empty.
    """

    def __init__(
        self,
        bad: Sequence[tuple[str, str]],
        total: int,
        where: str,
        advice: str = _MEND_OR_SKIP,
        kind: str = "",
    ):
        super().__init__(unreadable(bad, total, where, advice))
        self.count, self.total, self.kind = len(bad), total, kind

    def __reduce__(self) -> tuple:
        return DataError, self.args


class _Verified(NamedTuple):
    digest: str
    patient: str | None
    institution: str | None
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Selected:
    """A decoder of the entries at `positions` alone."""

    decode: Decoder
    positions: tuple[int, ...]

    def __call__(self, record: int) -> Decoded:
        return self.decode(self.positions[record])


def _verify(
    decode: Decoder, count: int, side: int
) -> tuple[list[_Verified | str], dict[int, Fitted]]:
    """For each of `count` images its digest and origin, or the reason why it cannot be used.

    Also the fitted images of side `side`, as many as fit into `KEPT_BYTES`.
    """
    kept: dict[int, Fitted] = {}
    budget = [KEPT_BYTES]
    lock = threading.Lock()

    def check(i: int) -> _Verified | str:
        try:
            decoded = decode(i)
            fitted = image_files.fit_decoded(decoded, side)
        except ImageError as error:
            return str(error)
        with lock:
            n_bytes = sum(part.nbytes for part in fitted if part is not None)
            if n_bytes <= budget[0]:
                budget[0] -= n_bytes
                kept[i] = fitted
        digest = image_files.pixel_digest(decoded.pixels)
        return _Verified(digest, decoded.patient, decoded.institution, decoded.remarks)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(check, range(count))), kept


def _without_contradictions(
    entries: Sequence[Entry], checks: Sequence["_Verified | str"]
) -> list["_Verified | str"]:
    """`checks` with a reason in place of each image that stands under two labels."""
    first: dict[str, int] = {}
    result = list(checks)
    for i, check in enumerate(checks):
        if isinstance(check, str):
            continue
        j = first.setdefault(check.digest, i)
        if entries[i].label != entries[j].label:
            for this, other in ((i, j), (j, i)):
                name = entries[other].name
                result[this] = f"the same image as {name}, which has another label"
    return result


def _check_identities(usable: Sequence[tuple[Entry, _Verified]], where: str) -> None:
    """DataError for a patient or site that could be taken for another; only the image is named."""
    for entry, check in usable:
        for kind, name in (
            ("patient", entry.patient),
            ("site", entry.site),
            ("institution", check.institution),
        ):
            problem = ""
            if name and name.startswith(OWN_PATIENT):
                problem = f"begins with {OWN_PATIENT!r}, which marks images without a patient"
            elif name and any(unicodedata.category(char) == "Cc" for char in name):
                problem = "has control characters"
            if problem:
                raise DataError(f"{where}: {entry.name}: its {kind} {problem}; rename the {kind}")


def _sites(usable: Sequence[tuple[Entry, _Verified]], where: str) -> np.ndarray | None:
    """[n] the sites that the source names, else the institutions in the headers, else None."""
    for sites in ([e.site for e, _ in usable], [check.institution for _, check in usable]):
        names = [site for site in sites if site]
        if len(names) == len(usable):
            pair = spelling.alike(names)
            if pair:
                raise DataError(
                    f"{where}: the sites {pair[0]!r} and {pair[1]!r} differ only in case or "
                    "spaces; write them alike, or rename one"
                )
            return np.array(names)
    return None


def _patients(usable: Sequence[tuple[Entry, _Verified]], sites: np.ndarray | None) -> np.ndarray:
    """[n] patients, kept apart by site where the source names sites; else the image's own name."""
    patients = []
    for i, (entry, check) in enumerate(usable):
        patient = entry.patient or check.patient
        if patient and sites is not None:
            patient = f"{sites[i]}/{patient}"
        patients.append(patient or f"{OWN_PATIENT}{entry.name}")
    return np.array(patients)


def _doubts(usable: Sequence[tuple[Entry, _Verified]], where: str) -> tuple[str, ...]:
    """Warnings of the DICOM guard: how many images share a doubt, without their names."""
    counts = collections.Counter(doubt for _, check in usable for doubt in check.remarks)
    return tuple(
        f"{where}: {count} of {len(usable)} images: {doubt} (config.data.dicom_guard)"
        for doubt, count in counts.most_common()
    )


def _remarks(patients: np.ndarray, where: str) -> tuple[str, ...]:
    """Warnings where who is the same patient is doubtful; they name no patient."""
    remarks = []
    named = patients[~np.char.startswith(patients, OWN_PATIENT)].tolist()
    for likeness, pair in (
        ("case or spaces", spelling.alike(named)),
        ("leading zeros, as 001 and 1 do", spelling.alike_but_for_zeros(named)),
    ):
        if pair:
            remarks.append(
                f"{where}: some patients' names differ only in {likeness}; they count as different "
                "people"
            )
    unnamed = int(np.char.startswith(patients, OWN_PATIENT).sum())
    if unnamed:
        remarks.append(
            f"{where}: {unnamed} of {len(patients)} images name no patient, so each of them counts "
            "as a patient of its own; if some show the same person, training and test set overlap. "
            "Name patients by folders CLASS/PATIENT/FILE, a table's column `patient` or DICOM "
            "headers"
        )
    return tuple(remarks)
