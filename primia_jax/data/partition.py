"""Partition of the patients between hospitals.

The shares of a hospital are met by a greedy walk: groups of records that belong together (see
`splits.group_ids`) come class by class in random order, and each goes to the hospital that is
furthest below its share of images so far.

Axis letters: n records, m records to divide, g groups, h hospitals, k classes.

Source of the Dirichlet partition: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification" (2019), section 3.
"""

import re

import numpy as np

from primia_jax.config.sections import DataConfig
from primia_jax.core.names import check_site_name
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.splits import group_classes, group_ids
from primia_jax.errors import DataError

_STREAM = (2,)  # keeps these random numbers apart from those of other modules with the same seed
_DRAWS = 200  # of a Dirichlet partition, before a hospital without patients is reported


def hospital_names(catalogue: Catalogue, hospitals: int, rule: str = "given") -> tuple[str, ...]:
    """[h] names in the order of `partition`.

    They are the source's sites if `rule` (`data.partition`) is "given" and there are so many;
    otherwise hospital_0, hospital_1, …

    Raises:
      DataError: if a hospital cannot be called as its site is, see `check_site_name`.
    """
    sites = _site_names(catalogue.sites) if rule == "given" else ()
    if len(sites) != hospitals:
        return tuple(f"hospital_{i}" for i in range(hospitals))
    return tuple(check_site_name(site, "a site of the images") for site in sites)


def partition(
    catalogue: Catalogue,
    indices: np.ndarray,
    hospitals: int,
    data: DataConfig,
    seed: int,
    *,
    splits: np.ndarray | None = None,
) -> list[np.ndarray]:
    """[h] arrays of record numbers, ascending: a division of `indices`, patients kept whole.

    The rule is `data.partition`:
      given: by `catalogue.sites`, in the order of `hospital_names`;
      iid: equal numbers of images of each class;
      dirichlet: each class is spread by shares drawn from Dir(`data.dirichlet_alpha`);
      size: numbers of images fall geometrically, the first hospital's being `data.size_ratio`
        times the last one's, each class alike.

    Args:
      catalogue: the records.
      indices: [m] records to divide.
      hospitals: h.
      data: the section of settings.
      seed: the same arguments and seed give the same division.
      splits: [n] of `splits.assign_splits`. Where given, each split is spread by the same shares,
        so that no hospital lacks training or validation patients.

    Raises:
      DataError: if there are fewer patients than hospitals, a hospital gets none, a patient is at
        two given sites, or the given sites are not as many as the hospitals.
    """
    indices = np.unique(np.asarray(indices, dtype=np.int64))
    if data.partition == "given":
        return _given(catalogue, indices, hospitals, splits)
    groups = np.unique(group_ids(catalogue)[indices], return_inverse=True)[1]
    of_group = np.unique(groups, return_index=True)[1]
    of_split = np.full(len(of_group), "") if splits is None else splits[indices[of_group]]
    _check_enough(of_split, hospitals)
    sizes = np.bincount(groups)
    classes = group_classes(catalogue, groups, indices)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=_STREAM)))
    n_classes = len(catalogue.class_names)
    if data.partition == "dirichlet":
        owners = _dirichlet(sizes, classes, of_split, n_classes, hospitals, data, rng)
    else:
        ratio = data.size_ratio if data.partition == "size" else 1.0
        falling = np.geomspace(ratio, 1, hospitals)
        shares = np.tile(falling / falling.sum(), (n_classes, 1))
        owners = _allocate(sizes, classes, of_split, shares, rng, carry=True)
        owners = _no_hospital_empty(owners, sizes, of_split, hospitals)
    return [indices[owners[groups] == hospital] for hospital in range(hospitals)]


def _given(
    catalogue: Catalogue, indices: np.ndarray, hospitals: int, splits: np.ndarray | None
) -> list[np.ndarray]:
    """The division by `catalogue.sites`."""
    if catalogue.sites is None:
        raise DataError(
            "the source names no sites, so config.data.partition = 'given' divides nothing; "
            "choose iid, dirichlet or size"
        )
    names = _site_names(catalogue.sites)
    if len(names) != hospitals:
        raise DataError(
            f"the source has {len(names)} sites ({_listed(names)}), but config.federated.hospitals "
            f"= {hospitals}; set it to {len(names)}, or choose config.data.partition iid, "
            "dirichlet or size"
        )
    site_of: dict[str, str] = {}
    for i in indices:
        patient, site = str(catalogue.patients[i]), str(catalogue.sites[i])
        if site_of.setdefault(patient, site) != site:
            raise DataError(
                f"{catalogue.names[i]}: its patient has images at site {site_of[patient]} and at "
                f"site {site}; a patient belongs to one hospital"
            )
    parts = [indices[catalogue.sites[indices] == name] for name in names]
    empty = [name for name, part in zip(names, parts) if not len(part)]
    if empty:
        raise DataError(f"0 of {len(indices)} images to divide are at site {_listed(empty)}")
    if splits is not None:
        for split in np.unique(splits[indices]):
            lacking = [n for n, part in zip(names, parts) if not (splits[part] == split).any()]
            if lacking:
                raise DataError(
                    f"no {split} images at site {_listed(lacking)}; it needs two patients or more"
                )
    return parts


def _check_enough(of_split: np.ndarray, hospitals: int) -> None:
    """DataError if there are fewer groups than hospitals, in all or in some split."""
    counts = [("", len(of_split)), *zip(*np.unique(of_split, return_counts=True))]
    for split, count in counts:
        if count < hospitals:
            kind, where = (
                (f"{split} patients", f" to the {split} set") if split else ("patients", "")
            )
            raise DataError(
                f"{count} {kind} cannot be divided over {hospitals} hospitals; lower "
                f"config.federated.hospitals or add patients{where}"
            )


def _allocate(
    sizes: np.ndarray,
    classes: np.ndarray,
    of_split: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
    *,
    carry: bool,
) -> np.ndarray:
    """[g] int: the hospital of each group.

    Args:
      sizes: [g] images of each group.
      classes: [g] its class.
      of_split: [g] its split; each is divided by itself.
      shares: [k, h] of each class's images that a hospital should have; rows sum to 1.
      rng: for the order of groups.
      carry: whether a hospital that got too little of one class gets more of the next, which keeps
        totals close to their shares.
    """
    owners = np.zeros(len(sizes), int)
    for split in np.unique(of_split):
        missing = np.zeros(shares.shape[1])
        for k, share in enumerate(shares):
            members = rng.permutation(np.flatnonzero((of_split == split) & (classes == k)))
            missing = share * sizes[members].sum() + (missing if carry else 0)
            for group in members:
                hospital = int(np.argmax(missing))
                missing[hospital] -= sizes[group]
                owners[group] = hospital
    return owners


def _dirichlet(
    sizes: np.ndarray,
    classes: np.ndarray,
    of_split: np.ndarray,
    n_classes: int,
    hospitals: int,
    data: DataConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """[g] int: hospitals by shares drawn again until none is without patients in any split."""
    n_splits = len(np.unique(of_split))
    for _ in range(_DRAWS):
        shares = rng.dirichlet(np.full(hospitals, data.dirichlet_alpha), size=n_classes)
        owners = _allocate(sizes, classes, of_split, shares, rng, carry=False)
        if len(set(zip(of_split, owners))) == n_splits * hospitals:
            return owners
    empty = hospitals - len(np.unique(owners))
    raise DataError(
        f"no division of {len(sizes)} patients over {hospitals} hospitals with "
        f"config.data.dirichlet_alpha = {data.dirichlet_alpha:g} gave every hospital patients in "
        f"each split ({_DRAWS} draws; {empty} hospitals empty in the last); raise it"
    )


def _no_hospital_empty(
    owners: np.ndarray, sizes: np.ndarray, of_split: np.ndarray, hospitals: int
) -> np.ndarray:
    """`owners` with the smallest group of the richest hospital given to each that has none."""
    owners = owners.copy()
    for split in np.unique(of_split):
        mine = of_split == split
        for hospital in range(hospitals):
            counts = np.bincount(owners[mine], minlength=hospitals)
            if not counts[hospital]:
                givers = np.flatnonzero(mine & (owners == np.argmax(counts)))
                owners[givers[np.argmin(sizes[givers])]] = hospital
    return owners


def _site_names(sites: np.ndarray | None) -> tuple[str, ...]:
    """The different sites, numbers in them counted as numbers: site_2 before site_10."""
    if sites is None:
        return ()

    def natural(name: str) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", name)
        return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]

    return tuple(sorted((str(site) for site in np.unique(sites)), key=natural))


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
