"""Training, validation and test records: by patient, stratified by class and site, seeded.

A *group* is what must not be torn apart: all records of a patient, and all records that show an
identical image (two patients who share an image form one group). Axis letters: n records, g groups.

`sklearn.model_selection.StratifiedGroupKFold` makes folds of one size only and knows no strata but
classes. Systematic sampling does both in a few lines: within a class, groups are ordered by site
and shuffled within it, and every (1 / fraction)-th one is taken, so that each class, and each
class of each site, is off its share by about one group at most.
"""

from collections.abc import Iterable

import numpy as np

from primia_jax.data.catalogue import TEST, TRAIN, VALIDATION, Catalogue
from primia_jax.errors import DataError

_STREAM = (1,)  # keeps these random numbers apart from those of other modules with the same seed


def assign_splits(
    catalogue: Catalogue,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    all_classes: bool = True,
) -> np.ndarray:
    """[n] str: "train", "validation" or "test" for each record.

    What the source fixes is kept, with one exception: a source that fixes no test (or validation)
    set has it taken from its free records and its training set: the test set from the free
    records if there are any. A free record of a patient whose other records are fixed follows them.

    Args:
      catalogue: the records.
      validation_fraction: of the patients outside the test set, at each site alike and at least
        one at each site with two patients or more; 0 takes none.
      test_fraction: of the patients; 0 takes none.
      seed: the same catalogue and seed give the same splits.
      all_classes: False for one hospital of several, where a class may be missing or too rare to
        stand in the training and in the validation set.

    Raises:
      DataError: if a patient or an identical image stands in two fixed splits (naming both
        records), or the training or validation set would be empty or, if `all_classes`, lack a
        class.
    """
    groups = group_ids(catalogue)
    n_groups = int(groups.max()) + 1
    fixed = catalogue.splits if catalogue.splits is not None else np.full(len(catalogue), "")
    _check_fixed(catalogue, groups, fixed)
    of_group = np.full(n_groups, "", dtype=f"<U{len(VALIDATION)}")
    of_group[groups[fixed != ""]] = fixed[fixed != ""]
    strata = group_classes(catalogue, groups)
    sites = _group_sites(catalogue, groups)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=_STREAM)))

    needs_validation = validation_fraction > 0 and not (of_group == VALIDATION).any()
    if test_fraction > 0 and not (of_group == TEST).any():
        free = of_group == ""
        pool = free if free.any() else of_group == TRAIN
        leave = 2 if needs_validation else 1
        of_group[_sample(pool, strata, sites, test_fraction, leave, rng)] = TEST
    if needs_validation:
        pool = (of_group == "") | (of_group == TRAIN)
        chosen = _sample(pool, strata, sites, validation_fraction, 1, rng)
        of_group[chosen] = VALIDATION
        of_group[_one_a_site(pool, chosen, strata, sites)] = VALIDATION
    of_group[of_group == ""] = TRAIN
    splits = of_group[groups]
    needed = [TRAIN, VALIDATION] if (splits == VALIDATION).any() or needs_validation else [TRAIN]
    for split in needed:
        if not (splits == split).any():
            raise DataError(
                f"no record for the {split} set: {len(catalogue)} records of {n_groups} patients "
                "in all; add patients or change the fixed splits"
            )
    if all_classes:
        _check_classes(catalogue, splits, groups, needed)
    return splits


def group_ids(catalogue: Catalogue) -> np.ndarray:
    """[n] int: equal for records that share a patient or an image, directly or through others."""
    # Union-find over records; each patient and each digest joins its records to its first one.
    parent = list(range(len(catalogue)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for keys in (catalogue.patients, catalogue.digests):
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            parent[root(i)] = root(first.setdefault(key, i))
    return np.unique([root(i) for i in range(len(catalogue))], return_inverse=True)[1]


def group_classes(
    catalogue: Catalogue, groups: np.ndarray, indices: np.ndarray | None = None
) -> np.ndarray:
    """[g] int: the class that most records of the group have; the rarer class where two tie.

    Args:
      catalogue: the records.
      groups: [m] the group, from 0, of each record at `indices`.
      indices: [m] records; all of them if absent.
    """
    labels = catalogue.labels if indices is None else catalogue.labels[indices]
    n_classes = len(catalogue.class_names)
    counts = np.zeros((int(groups.max()) + 1, n_classes))
    np.add.at(counts, (groups, labels), 1)
    rarity = np.bincount(labels, minlength=n_classes) / (2 * len(labels))
    return np.argmax(counts - rarity, axis=1)


def _sample(
    pool: np.ndarray,
    strata: np.ndarray,
    sites: np.ndarray,
    fraction: float,
    leave: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Indices of about `fraction` of the groups in `pool`, stratified by class and site.

    From each class at least one is taken and at least `leave` are left, the latter first.
    """
    taken = [np.zeros(0, int)]
    for stratum in np.unique(strata[pool]):
        members = rng.permutation(np.flatnonzero(pool & (strata == stratum)))
        site_order = rng.permutation(int(sites.max()) + 1)
        members = members[np.argsort(site_order[sites[members]], kind="stable")]
        count = max(1, int(np.floor(fraction * len(members) + 0.5)))
        count = max(0, min(count, len(members) - leave))
        # The middles of `count` equal stretches of the members.
        middles = (np.arange(count) + 0.5) * len(members) / max(count, 1)
        taken.append(members[middles.astype(int)])
    return np.concatenate(taken)


def _one_a_site(
    pool: np.ndarray, chosen: np.ndarray, strata: np.ndarray, sites: np.ndarray
) -> list[int]:
    """A group of `pool` at each site without any in `chosen`: of the class that is commonest there.

    Only sites with two groups or more give one up, and never the last group of its class.
    """
    left = np.bincount(strata[pool]) - np.bincount(strata[chosen], minlength=strata[pool].max() + 1)
    added = []
    for site in np.setdiff1d(sites[pool], sites[chosen]):
        members = np.flatnonzero(pool & (sites == site))
        members = members[left[strata[members]] > 1]
        if (pool & (sites == site)).sum() >= 2 and len(members):
            commonest = np.argmax(np.bincount(strata[members]))
            added.append(int(members[strata[members] == commonest][0]))
            left[commonest] -= 1
    return added


def _group_sites(catalogue: Catalogue, groups: np.ndarray) -> np.ndarray:
    """[g] int: the site of each group's first record."""
    first = np.unique(groups, return_index=True)[1]
    if catalogue.sites is None:
        return np.zeros(len(first), int)
    return np.unique(catalogue.sites, return_inverse=True)[1][first]


def _check_fixed(catalogue: Catalogue, groups: np.ndarray, fixed: np.ndarray) -> None:
    """DataError if one group has records in two of the splits that the source fixes."""
    reasons = (
        (catalogue.patients, "the same patient"),
        (catalogue.digests, "identical images"),
        (groups, "joined by patients and identical images that they share"),
    )
    for keys, reason in reasons:
        pairs = _torn(keys, fixed)
        if pairs:
            (a, b), more = pairs[0], len(pairs) - 1
            others = f" ({more} more such cases)" if more else ""
            raise DataError(
                f"{catalogue.names[a]} ({fixed[a]}) and {catalogue.names[b]} ({fixed[b]}) are "
                f"{reason}, in two splits{others}; move or remove one of them"
            )


def _torn(keys: Iterable, fixed: np.ndarray) -> list[tuple[int, int]]:
    """One pair of records for each key that stands in two fixed splits."""
    first: dict = {}
    pairs: dict = {}
    for i, key in enumerate(keys):
        if fixed[i]:
            j = first.setdefault(key, i)
            if fixed[i] != fixed[j]:
                pairs.setdefault(key, (j, i))
    return list(pairs.values())


def _check_classes(
    catalogue: Catalogue, splits: np.ndarray, groups: np.ndarray, needed: list[str]
) -> None:
    """DataError unless each class has records in all `needed` splits."""
    for label, name in enumerate(catalogue.class_names):
        mine = catalogue.labels == label
        for split in needed:
            if not (mine & (splits == split)).any():
                n_patients = len(np.unique(groups[mine]))
                raise DataError(
                    f"class {name} has no record in the {split} set (it has {mine.sum()} records "
                    f"of {n_patients} patients in all); add patients or change the fixed splits"
                )
