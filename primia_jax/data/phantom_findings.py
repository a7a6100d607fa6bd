"""Disease in the lungs of a phantom patient: lobar consolidation and interstitial pattern.

Axis letters: s image side.
"""

from typing import NamedTuple

import numpy as np

from primia_jax.data.phantom_anatomy import Scene, smooth, step

NORMAL, BACTERIAL, VIRAL = 0, 1, 2

# Centres and radii of the lobes a consolidation fills: (side, across, down, radius across, radius
# down, the way a fissure cuts it off: +1 sharp below, -1 sharp above, 0 fading on all sides).
LOBES = (
    (-1, 0.52, 0.30, 0.46, 0.26, +1),  # right upper
    (-1, 0.50, 0.66, 0.42, 0.20, -1),  # right middle
    (-1, 0.58, 0.82, 0.46, 0.25, 0),  # right lower
    (+1, 0.54, 0.32, 0.44, 0.28, 0),  # left upper
    (+1, 0.64, 0.78, 0.42, 0.26, 0),  # left lower
)


class Disease(NamedTuple):
    """Findings that all images of one patient share. `kind` is the label."""

    kind: int
    lobes: tuple[int, ...]  # bacterial: the lobes affected, indices into LOBES
    severity: float  # 0 to 1
    reticular: float  # viral: share of the net-like pattern against cuffed bronchi, 0 to 1


def draw_disease(kind: int, rng: np.random.Generator) -> Disease:
    """A course of the disease `kind` for one patient."""
    count = 1 if rng.random() < 0.7 else 2
    lobes = rng.permutation(len(LOBES))[:count]
    return Disease(
        kind, tuple(int(k) for k in lobes), float(rng.random()), float(rng.uniform(0.35, 0.8))
    )


def affect(
    scene: Scene, disease: Disease, difficulty: float, rng: np.random.Generator, s: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tissue and air [s, s] of the diseased body; consumes `rng` alike whatever the disease."""
    edges = smooth(rng.standard_normal((13, 13)).astype(np.float32), s)
    net = [smooth(rng.standard_normal((g, g)).astype(np.float32), s) for g in (30, 44)]
    extent = rng.uniform(0.88, 1.18, len(LOBES))
    offsets = rng.uniform(-0.13, 0.13, (len(LOBES), 2))
    patchy = smooth(rng.standard_normal((7, 7)).astype(np.float32), s)
    subtle = 1.0 / (0.55 + 0.45 * difficulty)
    strength = subtle * (0.9 + 0.4 * disease.severity)
    if disease.kind == BACTERIAL:
        patch = np.zeros((s, s), np.float32)
        for lobe in disease.lobes:
            shape = _consolidation(scene, lobe, edges, offsets[lobe], float(extent[lobe]))
            np.maximum(patch, shape, out=patch)
        bronchograms = 1.0 - 0.45 * np.minimum(scene.streaks, 1.0)
        filled = min(0.82 * strength, 0.95) * patch * bronchograms
        return scene.tissue, scene.air * (1.0 - filled)
    if disease.kind == VIRAL:
        # Zero crossings of smooth noise make closed meshes: the septa of a reticular pattern.
        meshes = sum(np.exp(-((n * 2.6) ** 2)) for n in net) * 0.75
        density = np.clip(0.85 + 0.5 * patchy, 0.3, 1.4)
        cuffs = scene.streaks * (1.0 - disease.reticular)
        pattern = (disease.reticular * meshes * density + 1.3 * cuffs) * scene.lung
        haze = 1.0 - 0.10 * strength * density
        return scene.tissue + 0.20 * strength * pattern * (scene.air > 0), scene.air * haze
    return scene.tissue, scene.air


def _consolidation(
    scene: Scene, lobe: int, edges: np.ndarray, offset: np.ndarray, extent: float
) -> np.ndarray:
    """A patch [s, s] in 0 to 1 that fills a good part of the lobe, ragged or cut by a fissure."""
    side, across, down, wide, high, fissure = LOBES[lobe]
    du = (scene.across - across - float(offset[0])) * (1.0 / (wide * extent))
    dv = (scene.down - down - float(offset[1])) * (1.0 / (high * extent))
    radius = np.sqrt(du * du + dv * dv) + 0.42 * edges
    patch = step(0.92 - radius, 0.45) * (scene.side == side)
    if fissure:
        patch = patch * step(0.55 - fissure * dv, 0.12)
    return patch
