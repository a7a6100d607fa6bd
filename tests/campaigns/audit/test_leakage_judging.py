"""Tests between settings are of pairs just where both were attacked behind the same images."""

import dataclasses

import numpy as np

from primia_jax.campaigns.audit import judging, report
from primia_jax.campaigns.audit.attacking import Found


def found(seed=0, n=6, **others):
    """Made-up findings on the same images, with measures of their own."""
    originals = np.random.default_rng(7).random((n, 4, 4, 1), np.float32)
    rng = np.random.default_rng(seed)
    measures = {name: rng.random(n) for name in ("mse", "psnr", "ssim")}
    one = Found(
        originals=originals,
        images=originals,
        **measures,
        ranks=np.ones(n),
        gallery=np.asarray(10),
        losses=np.zeros(n),
        labels_right=np.ones(n, bool),
        rounds=np.repeat([1, 2], n // 2),
        updates=np.arange(n),
        hospitals=np.tile([f"hospital_{i}" for i in range(n // 2)], 2),
        records=np.arange(n)[::-1],
    )
    return dataclasses.replace(one, **others)


def shuffled(one, order):
    alike = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    return Found(**{k: v[order] if v.ndim else v for k, v in alike.items()})


def test_pairs_are_found_in_any_order():
    first, second = found(0), found(1)
    order = np.array([3, 5, 4, 1, 0, 2])
    (test,) = judging.tests({"a": first, "b": shuffled(second, order)})["tests"]["psnr"]
    (plain,) = judging.tests({"a": first, "b": second})["tests"]["psnr"]
    assert test["paired"]
    for key in ("difference", "t", "p", "cohens_d"):
        np.testing.assert_allclose(test[key], plain[key])
    differences = first.psnr - second.psnr
    d = differences.mean() / differences.std(ddof=1)
    np.testing.assert_allclose(test["cohens_d"], d)


def test_other_images_are_not_paired():
    first = found(0)
    for others in (
        {"records": np.arange(6) + 1},
        {"rounds": np.repeat([1, 3], 3)},
        {"hospitals": np.repeat("pooled", 6)},
        {"originals": found().originals[::-1]},  # other data, or augmented otherwise
    ):
        for test in (
            *judging.tests({"a": first, "b": found(1, **others)})["tests"]["mse"],
            *judging.against("a", {"a": first, "b": found(1, **others)}, ["b"])["mse"],
        ):
            assert not test["paired"]
    fewer = shuffled(found(1), np.arange(5))
    assert not judging.against("a", {"a": first, "b": fewer}, ["b"])["mse"][0]["paired"]


def test_an_image_twice_behind_an_update_counts_once():
    twice = found(
        records=np.zeros(6, int), updates=np.zeros(6, int), hospitals=np.repeat("hospital_0", 6)
    )
    once = judging._identified(twice)
    assert len(once.ranks) == 1
    np.testing.assert_allclose(once.p, 1 / 10)


def scenario(name, psnr, worst, share, p):
    identified = {"share": share, "chance": 0.1, "gallery": 10, "p": p}
    return {"setting": name, "psnr": {"mean": psnr, "worst": worst}, "identified": identified}


def test_verdicts_agree_with_the_table():
    """An update that gives its images away is never said to tell little, however dark they are."""
    rows = [
        scenario("plain", 25.0, 30.0, 0.9, 1e-6),
        scenario("secure", 11.0, 13.0, 0.67, 1e-4),
        scenario("pooled", 11.0, 24.0, 0.1, 0.7),
        scenario("noised", 9.0, 10.0, 0.1, 0.6),
    ]
    control = {"recovered": True, "psnr": 30.0, "needed": 20.0}
    texts = report.verdicts({"control": control, "tests": None, "settings": rows})
    by_name = {
        name: [t for t in texts if name in t] for name in ("plain", "secure", "pooled", "noised")
    }
    assert not by_name["plain"]
    (leak,), (exposed,), (weak,) = by_name["secure"], by_name["pooled"], by_name["noised"]
    assert "leaks: 67% of the images were re-identified among 10 (chance 10%" in leak
    assert "highest 24.0 dB" in exposed and "leaks" in exposed
    assert "recovers little" in weak and "not privacy" in weak
