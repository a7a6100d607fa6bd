"""From absorption to a film: exposure, things lying on the patient, and the machine of a site.

Axis letters: s image side.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from primia_jax.data.phantom_anatomy import plane, smooth, step

FOREIGN = 100  # families of scanners that begin here or later belong to another country
_FAMILY = 0x5CA77E12  # keeps the scanners' draws apart from the patients'

_GLYPHS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
}


class Scanner(NamedTuple):
    """One machine and the people who come to it. Lengths in film half-widths."""

    gamma: float
    blur: float  # standard deviation of the focal spot
    sharpen: float  # strength of unsharp masking, as digital machines apply it
    noise: float  # over the default machine's
    level: float  # shift of the display window
    width: float  # contrast, over the default machine's
    heel: float  # brightness gradient down the film
    vignette: float  # darkening of the corners
    collimation: tuple[float, float, float, float]  # left, right, top, bottom borders left dark
    border: float  # grey value of those borders
    marker: str  # side marker placed by this site
    age: float  # mean age of the patients, see `draw_anatomy`


@functools.lru_cache(maxsize=1024)
def scanner(number: int, shift: float, foreign: bool = False) -> Scanner:
    """The scanner `number`; `shift` 0 makes all alike, larger ones spread them further apart.

    A `foreign` one has a softer, noisier, harder image, wider borders and older patients.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((_FAMILY, number))))
    far = 1.0 if foreign else 0.0

    def around(centre: float, spread: float) -> float:
        return centre + shift * spread * float(rng.uniform(-1.0, 1.0))

    def border() -> float:
        return max(0.0, around(-0.03, 0.10) + 0.05 * shift * far)

    gamma = float(np.exp(around(0.0, 0.28) + shift * far * 0.35))
    sharpness = around(0.0, 1.0)
    return Scanner(
        gamma=gamma,
        blur=0.010 * max(0.0, -sharpness) + 0.006 * shift * far,
        sharpen=0.9 * max(0.0, sharpness) * (1.0 - far),
        noise=float(np.exp(around(0.0, 0.35) + 0.35 * shift * far)),
        level=around(0.0, 0.07),
        width=float(np.exp(around(0.0, 0.18) - 0.15 * shift * far)),
        heel=around(0.0, 0.08),
        vignette=max(0.0, around(0.05, 0.10) + 0.12 * shift * far),
        collimation=(border(), border(), border(), border()),
        border=float(np.clip(around(0.02, 0.04), 0.0, 0.2)),
        marker="R" if shift > 0 and number % 2 else "L",
        age=around(0.35, 0.25) + 1.0 * shift * far,
    )


def expose(
    absorption: np.ndarray,
    machine: Scanner,
    difficulty: float,
    rng: np.random.Generator,
    s: int,
) -> np.ndarray:
    """The film [s, s] uint8 of an absorption [s, s]."""
    trouble = 0.6 + 0.4 * difficulty
    level = 0.56 + machine.level + 0.08 * trouble * float(rng.normal())
    width = 0.27 / machine.width * float(np.exp(0.14 * trouble * rng.normal()))
    blur = machine.blur + 0.007 * trouble * float(rng.random()) ** 2
    corner = rng.uniform((0.06, 0.05), (0.14, 0.25)) if rng.random() < 0.75 else None
    jitter = rng.uniform(-0.02, 0.02, 4)
    x, y = plane(s)
    absorption = absorption + _attachments(rng, s)
    if blur * s > 0.3:
        absorption = ndimage.gaussian_filter(absorption, blur * s * 0.5, truncate=3.0)
    if machine.sharpen > 0:
        soft = ndimage.uniform_filter(absorption, max(3, round(0.05 * s) | 1), mode="nearest")
        absorption = absorption + machine.sharpen * (absorption - soft)
    uneven = machine.heel * y - machine.vignette * (x * x + y * y) * 0.5
    uneven = uneven + 0.04 * trouble * smooth(rng.standard_normal((4, 4)).astype(np.float32), s)
    film = 0.5 + 0.5 * np.tanh((absorption + uneven - level) * (1.0 / width) * 0.5)
    film **= machine.gamma
    film *= step(absorption - 0.02, 0.10) * 0.96 + 0.04

    # Quantum noise has a grain of its own and shows most where few photons arrive.
    grain = smooth(rng.standard_normal((96, 96)).astype(np.float32), s)
    amount = 0.026 * trouble * machine.noise * float(rng.uniform(0.5, 1.5))
    pixel = rng.standard_normal((s, s), dtype=np.float32)  # last: its number depends on s
    film += (amount * (0.4 + 0.6 * film)) * (1.6 * grain + 0.45 * pixel)
    if corner is not None:
        _mark(film, machine.marker, float(corner[0]), float(corner[1]))
    left, right, top, bottom = machine.collimation
    open_x = (x > -1.0 + left + jitter[0] * (left > 0)) & (
        x < 1.0 - right + jitter[1] * (right > 0)
    )
    open_y = (y > -1.0 + top + jitter[2] * (top > 0)) & (
        y < 1.0 - bottom + jitter[3] * (bottom > 0)
    )
    film = np.where(open_x & open_y, film, machine.border)
    return (np.clip(film, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _attachments(rng: np.random.Generator, s: int) -> np.ndarray:
    """Wires and electrodes lying on some patients, a feeding tube in a few."""
    present, tube = rng.random() < 0.3, rng.random() < 0.12
    ends = rng.uniform(-0.55, 0.55, (3, 4))
    bend = rng.uniform(-0.15, 0.15, 3)
    x, y = plane(s)
    field = np.zeros((s, s), np.float32)
    thin = max(0.010, 0.8 / s)
    if present:
        for (ax, ay, bx, _), curve in zip(ends, bend):
            t = np.clip((y - float(ay) + 1.0) * 0.5, 0.0, 1.0)
            path = float(ax) + float(bx - ax) * t + float(curve) * np.sin(6.0 * t)
            wire = np.abs(x - path) < thin
            field = np.maximum(field, np.where(wire & (y < ay), np.float32(0.22), 0.0))
            pad = (x - float(ax) - float(bx - ax) * 0.5) ** 2 + (y - float(ay)) ** 2
            field = np.maximum(field, 0.20 * step(0.05**2 - pad, 0.002))
    if tube:
        path = 0.02 + 0.03 * np.sin(3.0 * y + float(bend[0]) * 10.0) + 0.25 * np.maximum(y - 0.4, 0)
        shown = (np.abs(x - path) < thin) & (y < 0.7)
        field = np.maximum(field, np.where(shown, np.float32(0.16), 0.0))
    return field


def _mark(film: np.ndarray, letter: str, margin: float, top: float) -> None:
    """Stamps a side marker on `film`, in place; margins are fractions of the side."""
    s = film.shape[0]
    glyph = np.array([[bit == "1" for bit in row] for row in _GLYPHS[letter]])
    zoom = max(1, round(s / 100))
    glyph = glyph.repeat(zoom, 0).repeat(zoom, 1)
    h, w = glyph.shape
    row = int(top * s)
    column = s - int(margin * s) - w if letter == "L" else int(margin * s)
    film[row : row + h, column : column + w][glyph] = 0.97
