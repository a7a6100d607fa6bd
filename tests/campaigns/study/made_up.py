"""Made-up sets, models and readers, from which tables can be made without training."""

import dataclasses

import numpy as np

from primia_jax.campaigns.study import judging
from primia_jax.campaigns.study.judging import Choice
from primia_jax.campaigns.study.readers import UNREAD, Reader
from primia_jax.campaigns.study.sets import TEST_1, TEST_2, VALIDATION, ImageSet
from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.data import Catalogue

CLASSES = ("normal", "bacterial", "viral_<&>")  # a name that HTML and LaTeX must escape
SEEDS = (3, 5)


def image_set(key: str, n: int = 60) -> ImageSet:
    """A set of n images without pixels, classes in turn."""
    catalogue = Catalogue(
        names=tuple(f"{key}/{i}" for i in range(n)),
        labels=np.arange(n, dtype=np.int32) % 3,
        patients=np.array([f"p{i // 2}" for i in range(n)]),
        sites=None,
        splits=None,
        class_names=CLASSES,
        read=lambda record, s: np.zeros((s, s), np.uint8),
        digests=tuple(f"{key} {i}" for i in range(n)),
    )
    return ImageSet(key, "made up", catalogue, np.arange(n))


def told(labels: np.ndarray, wrong: int, rng: np.random.Generator) -> np.ndarray:
    """[n k] probabilities that name the wrong class on the first `wrong` images."""
    named = labels.copy()
    named[:wrong] = (named[:wrong] + 1) % 3
    noise = rng.random((len(labels), 3))
    return (np.eye(3)[named] * 2 + noise) / (2 + noise.sum(1, keepdims=True))


def found(
    wrong_secure: int = 3,
    wrong_local: int = 3,
    readers: bool = True,
    seeds: tuple[int, ...] = SEEDS,
    inversion: dict | None = None,
    sets: tuple[str, ...] = (VALIDATION, TEST_1, TEST_2),
):
    """What tables.json would hold; and the sets and raters that it is of."""
    rng = np.random.default_rng(0)
    made = [image_set(key) for key in sets]
    wrong = {"federated_secure": wrong_secure, "federated": wrong_secure, "local": wrong_local}
    raters = [
        judging.model(
            mode,
            {s.key: np.stack([told(s.labels, count + i, rng) for i in range(len(seeds))])
             for s in made},
        )
        for mode, count in wrong.items()
    ]  # fmt: skip
    if readers:
        labels = made[1].labels
        half = np.where(np.arange(60) < 30, labels, UNREAD)  # right, on the images that were read
        raters += [
            judging.human(Reader("Dr. A_1", (labels + (np.arange(60) % 2 == 0)) % 3), 3),
            judging.human(Reader("Dr. B", half), 3),
        ]
    numbers = judging.judge(made, CLASSES, raters, seeds, Choice(60, 0, 0.02))
    config = ExperimentConfig()
    whole = {
        "name": "A study <made up>",
        "finished": "never",
        "command": "python -m primia_jax.launch",
        "seeds": list(seeds),
        "modes": list(wrong),
        "classes": list(CLASSES),
        "sets": {
            s.key: {"n": 60, "patients": s.patients, "counts": s.counts, "what": s.what}
            for s in made
        },
        "training": [],
        "runs": [
            {"folder": f"local_{seed}", "mode": "local", "seed": seed, "rounds": 2,
             "best_round": 1, "seconds": 3.0}
            for seed in seeds
        ],
        "settings": to_plain(dataclasses.replace(config, name="made up")),
        "versions": {"python": "3"},
        **numbers,
        "inversion": inversion,
    }  # fmt: skip
    return whole, tuple(made), tuple(raters)


def inversion(difference: float = 1.0, p: float = 1e-4, recovered: bool = True) -> dict:
    """A table of inversions as the audit gives it; secure less single update is `difference`."""

    def summary(mean):
        return {"mean": mean, "std": 0.5, "interval": [mean - 0.1, mean + 0.1], "worst": mean / 2}

    def distance(value):
        return {"value": value, "interval": [value - 1, value + 1], "found": value, "floor": 1.0,
                "ceiling": 99.0}  # fmt: skip

    errors = {"local": 2.0, "federated": 2.5, "federated_secure": 2.5 + difference}
    rows = [
        {"setting": name, "n": 30, "mse": summary(mse), "psnr": summary(10.0), "ssim": None,
         "fid": distance(20.0), "kid": distance(0.0002),
         "identified": {"share": 0.5, "interval": [0.3, 0.7], "chance": 0.02, "p": 0.01},
         "notes": ["30 images are few."]}
        for name, mse in errors.items()
    ]  # fmt: skip
    test = {
        "interval": [0.1, 2.0], "t": 3.0, "p": p, "p_holm": 2 * p, "cohens_d": 0.8,
    }  # fmt: skip
    return {
        "images": 30,
        "note": "Attacked were short runs.",
        "threat_model": [["batch size", "1"]],
        "rows": rows,
        "anova": {"mse": {"f": 12.3, "p": p, "eta_squared": 0.2}},
        "tests": {
            "mse": [
                {"first": "local", "second": "federated", "difference": -0.5, **test},
                {"first": "federated", "second": "federated_secure", "difference": -difference,
                 **test},
            ]
        },
        "control": {"psnr": 25.0, "recovered": recovered},
        "panels": {},
    }  # fmt: skip
