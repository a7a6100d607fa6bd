"""The body of a phantom patient: which structures a chest film shows, and what each one absorbs.

A film is drawn as absorption: every structure adds (bone, blood, soft tissue) or takes away (air) a
field with smooth or sharp edges, in plane coordinates in which the film spans [-1, 1] both ways, x
growing to the image's right (the patient's left) and y downwards. Lengths are in those units.

Axis letters: s image side, g side of a lattice of random numbers.
"""

import functools
from typing import NamedTuple

import numpy as np


class Anatomy(NamedTuple):
    """Anatomy that all images of one patient share. Lengths in image half-widths."""

    cage_width: float  # half the inner width of the thorax
    cage_height: float  # half the height of the superellipse that the thorax is cut from
    cage_centre: float  # y of that superellipse's centre
    cage_power: float  # its exponent: 2 an ellipse, larger squarer
    flesh: float  # thickness of the chest wall
    heart_size: float  # half the width of the heart
    heart_tilt: float  # radians
    heart_lean: float  # how far the heart lies to the patient's left
    thymus: float  # 0 to 1: the wide upper mediastinum of a small child
    vessels: float  # prominence of the vascular markings
    rib_gap: float  # distance between ribs
    rib_width: float  # half the width of a rib
    rib_density: float
    rib_sag: float  # how far the posterior ribs drop towards the side
    spine_width: float
    diaphragm: float  # y of the right dome in full inspiration
    diaphragm_step: float  # how much lower the left dome lies
    stomach: float  # size of the gastric bubble, 0 to 1
    warp: np.ndarray  # [2, 5, 5] smooth deformation that makes every patient a little different


def draw_anatomy(rng: np.random.Generator, age: float) -> Anatomy:
    """A patient. `age` 0 is an infant, 1 a school child, 2 an adult; it shifts the proportions."""
    age = min(max(age, -0.5), 2.5)

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    width = between(0.56, 0.68) - 0.02 * age
    return Anatomy(
        cage_width=width,
        cage_height=between(0.84, 0.98) + 0.06 * age,
        cage_centre=between(0.17, 0.27) + 0.04 * age,
        cage_power=between(2.1, 2.9),
        flesh=between(0.09, 0.17) + 0.02 * age,
        heart_size=width * (between(0.41, 0.52) - 0.06 * age),
        heart_tilt=between(0.45, 0.85) + 0.15 * age,
        heart_lean=between(0.06, 0.14),
        thymus=between(0.0, 1.0) * max(0.0, 1.0 - 0.7 * age),
        vessels=between(0.55, 1.3),
        rib_gap=between(0.135, 0.165) - 0.008 * age,
        rib_width=between(0.026, 0.036) - 0.002 * age,
        rib_density=between(0.10, 0.19) + 0.03 * age,
        rib_sag=between(0.25, 0.75) + 0.25 * age,
        spine_width=between(0.065, 0.088),
        diaphragm=between(0.36, 0.50) + 0.04 * age,
        diaphragm_step=between(0.01, 0.07),
        stomach=between(0.0, 1.0),
        warp=(rng.standard_normal((2, 5, 5)) * 0.022).astype(np.float32),
    )


class Pose(NamedTuple):
    """Position of the patient in one image."""

    rotation: float  # radians, in the plane of the film
    zoom: float
    shift_x: float
    shift_y: float
    turn: float  # about the long axis: shifts heart and mediastinum against the cage
    inspiration: float  # raises (negative) or lowers the diaphragm
    arm_angle: tuple[float, float]  # radians below the horizontal, image left and right


class Scene(NamedTuple):
    """A body on the film, before disease is added to it."""

    tissue: np.ndarray  # [s, s] absorption of everything but the air of the lungs
    air: np.ndarray  # [s, s] what the lungs' air takes away from `tissue`
    lung: np.ndarray  # [s, s] 0 to 1: the lung fields, also behind the heart
    side: np.ndarray  # [s, s] -1 on the image's left of the midline, +1 on its right
    across: np.ndarray  # [s, s] distance from the midline over the width of the cage
    down: np.ndarray  # [s, s] 0 at the lungs' apex, 1 at their base
    streaks: np.ndarray  # [s, s] vascular and bronchial markings, fanning out from the hila
    heart: np.ndarray  # [s, s] 0 to 1: the heart, also where it lies before lung or diaphragm


@functools.lru_cache(maxsize=64)
def _spline_taps(g: int, s: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices [4, s] and weights [4, s] of a uniform cubic B-spline from g knots to s pixels."""
    position = (np.arange(s) + 0.5) / s * (g - 3)
    base = np.minimum(position.astype(np.int64), g - 4)
    t = position - base
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    )
    return base + np.arange(4)[:, None], (weights / 6).astype(np.float32)


def smooth(lattice: np.ndarray, s: int) -> np.ndarray:
    """The smooth field [s, s] through a lattice [g, g] (g >= 4), the same picture at every s."""
    index, weight = _spline_taps(lattice.shape[0], s)
    rows = (lattice[index] * weight[:, :, None]).sum(axis=0)
    return (rows[:, index] * weight).sum(axis=1)


def step(x: np.ndarray, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 where `x` crosses zero, `width` wide."""
    t = np.clip(x * (1.0 / width) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@functools.lru_cache(maxsize=16)
def plane(s: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates x [1, s] and y [s, 1] of the pixels' centres."""
    line = ((np.arange(s, dtype=np.float32) + 0.5) / s * 2.0 - 1.0).astype(np.float32)
    return line[None, :], line[:, None]


def draw_scene(anatomy: Anatomy, pose: Pose, rng: np.random.Generator, s: int) -> Scene:
    """Draws the healthy body at image side `s`; consumes `rng` alike for every `s`."""
    blur = max(0.012, 1.5 / s)  # an edge is never sharper than the pixels can show
    x, y = _body_coordinates(anatomy, pose, s)
    mid = 0.5 * pose.turn
    side = np.where(x < 0.0, np.float32(-1.0), np.float32(1.0))
    u = np.abs(x)
    a = anatomy
    top = a.cage_centre - a.cage_height

    # The cage: 1 - radius of a superellipse, so that it is positive inside.
    height = np.abs(y - a.cage_centre) * (1.0 / a.cage_height)
    widen = np.where(side < 0, 1.0 + 0.35 * pose.turn, 1.0 - 0.35 * pose.turn).astype(np.float32)
    breadth = u / (a.cage_width * widen)
    inside = 1.0 - (breadth**a.cage_power + height**a.cage_power) ** (1.0 / a.cage_power)

    # The domes of the diaphragm, which fall off steeply towards the side.
    dome = a.diaphragm + pose.inspiration + np.where(side > 0, np.float32(a.diaphragm_step), 0.0)
    diaphragm = dome + 0.55 * (breadth - 0.45) ** 2 + 0.22 * breadth**6
    below = y - diaphragm

    hilum_y = 0.5 * (top + a.diaphragm) + 0.02
    wall = np.minimum(np.minimum(inside * 0.55, u - 0.075), -below)
    lung = step(wall, 1.6 * blur)
    depth = 1.0 - np.exp(np.minimum(-wall, 0.0) * (1.0 / 0.11))
    heart = _heart(a, pose, x - mid, y, blur)
    centre = _mediastinum(a, x - mid, y, top, blur)
    solid = np.maximum(heart, centre)

    tissue = _flesh(a, pose, x, y, blur)
    tissue = tissue + 0.10 * step(below, 3 * blur) * step(inside + 0.25, 0.3)
    tissue -= _gas(a, pose, x, y, below, rng, s)
    tissue += 0.10 * heart + 0.07 * centre
    tissue += _spine(a, x - 0.35 * mid, y, blur) + _ribs(a, u, y, breadth, inside, top, blur)
    tissue += _shoulders(a, u, y, top, side, rng, blur) - _airway(x - 0.8 * mid, y, hilum_y, blur)

    streaks = _streaks(u - 0.10, y - hilum_y, side, rng) * lung * (1.0 - 0.6 * heart)
    tissue += (0.085 * a.vessels) * streaks
    air = (0.62 * lung) * (0.30 + 0.70 * depth) * (1.0 - 0.82 * solid)
    down = (y - top) * (1.0 / (a.diaphragm + pose.inspiration - top))
    return Scene(tissue, air, lung, side, breadth, down, streaks, heart)


def _body_coordinates(anatomy: Anatomy, pose: Pose, s: int) -> tuple[np.ndarray, np.ndarray]:
    """Film coordinates as seen from the patient: turned, zoomed, shifted and gently warped."""
    px, py = plane(s)
    cos, sin = float(np.cos(pose.rotation)), float(np.sin(pose.rotation))
    scale = 1.0 / pose.zoom
    x = (cos * px + sin * py - pose.shift_x) * scale + smooth(anatomy.warp[0], s)
    y = (cos * py - sin * px - pose.shift_y) * scale + smooth(anatomy.warp[1], s)
    return x, y


def _capsule(
    x: np.ndarray, y: np.ndarray, ax: float, ay: float, bx: float, by: float
) -> np.ndarray:
    """Distance to the line segment from (ax, ay) to (bx, by)."""
    dx, dy = bx - ax, by - ay
    along = np.clip(((x - ax) * dx + (y - ay) * dy) * (1.0 / (dx * dx + dy * dy)), 0.0, 1.0)
    return np.sqrt((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2)


def _flesh(a: Anatomy, pose: Pose, x: np.ndarray, y: np.ndarray, blur: float) -> np.ndarray:
    """Trunk, neck and upper arms: chords through round cross-sections of soft tissue."""
    wide = a.cage_width + a.flesh
    heights = [-1.5, -1.0, -0.86, -0.78, -0.70, -0.60, -0.40, -0.1, 0.3, 0.7, 1.5]
    widths = [0.25, 0.26, 0.33, 0.48, 0.80, 0.98, 1.02, 1.0, 1.0, 0.97, 0.93]
    half = np.interp(y.ravel(), heights, [w * (wide if w > 0.5 else 1.0) for w in widths])
    half = half.reshape(y.shape).astype(np.float32)
    flesh = 0.86 * np.sqrt(np.clip(1.0 - (x / half) ** 2, 0.0, 1.0)) ** 0.8
    for sign, angle in zip((-1.0, 1.0), pose.arm_angle):
        ax, ay = sign * (wide - 0.06), -0.56
        bx, by = ax + sign * 1.2 * float(np.cos(angle)), ay + 1.2 * float(np.sin(angle))
        distance = _capsule(x, y, ax, ay, bx, by)
        arm = 0.66 * np.sqrt(np.clip(1.0 - (distance * (1.0 / 0.20)) ** 2, 0.0, 1.0))
        flesh = np.maximum(flesh, arm)
        head = 0.064 - np.sqrt((x - ax) ** 2 + (y - ay) ** 2)
        shaft = 0.046 - distance
        cortex = 40.0 * np.minimum(distance, 0.05) ** 2
        flesh += step(np.maximum(shaft, head), 2.0 * blur) * (0.09 + cortex)
    return flesh


def _heart(a: Anatomy, pose: Pose, x: np.ndarray, y: np.ndarray, blur: float) -> np.ndarray:
    """Ventricles, right atrium and outflow tract: ellipses melted into one outline."""
    base = a.diaphragm + pose.inspiration
    r = a.heart_size
    cos, sin = float(np.cos(a.heart_tilt)), float(np.sin(a.heart_tilt))
    vx, vy = x - a.heart_lean, y - (base - 0.55 * r)
    along, over = cos * vx + sin * vy, cos * vy - sin * vx
    squares = (
        (along / (1.10 * r)) ** 2 + (over / (0.78 * r)) ** 2,
        ((x + 0.08) / (0.62 * r)) ** 2 + ((y - base + 0.65 * r) / (0.78 * r)) ** 2,
        ((x - 0.02) / (0.52 * r)) ** 2 + ((y - base + 1.25 * r) / (0.80 * r)) ** 2,
    )
    nearness = sum(np.exp(-4.0 * np.minimum(square, 20.0)) for square in squares)
    return step((1.0 - np.sqrt(-0.25 * np.log(nearness + 1e-30).clip(None, 0.0))) * r, 3.0 * blur)


def _mediastinum(a: Anatomy, x: np.ndarray, y: np.ndarray, top: float, blur: float) -> np.ndarray:
    """Great vessels, aortic knob and, in small children, the sail of the thymus."""
    middle = 0.55 * top
    sail = a.thymus * 0.15 * np.exp(-(((y - middle - 0.12) / 0.17) ** 2))
    half = (
        0.10
        + 0.07 * step(y - middle - 0.15, 0.5)
        + sail * (0.7 - 0.5 * np.clip(x * 8.0, -1.0, 1.0))
    )
    knob = 0.055 * np.exp(-(((y - middle - 0.05) / 0.07) ** 2)) * (x > 0)
    return step(half + knob - np.abs(x), 3.5 * blur) * step(0.55 - y, 0.4)


def _spine(a: Anatomy, x: np.ndarray, y: np.ndarray, blur: float) -> np.ndarray:
    """Vertebral bodies with their end plates, pedicles and spinous processes."""
    phase = (y * (1.0 / 0.118)) % 1.0 - 0.5
    body = step(a.spine_width * (1.0 - 0.5 * np.abs(phase)) - np.abs(x), 2.0 * blur)
    plates = step(0.40 - np.abs(phase), 0.2)
    pedicle = np.exp(-(((np.abs(x) - 0.6 * a.spine_width) / 0.014) ** 2) - (phase / 0.16) ** 2)
    process = np.exp(-((x / 0.013) ** 2) - ((phase - 0.2) / 0.2) ** 2)
    return body * (0.06 + 0.04 * plates + 0.06 * (pedicle + process))


def _ribs(
    a: Anatomy,
    u: np.ndarray,
    y: np.ndarray,
    breadth: np.ndarray,
    inside: np.ndarray,
    top: float,
    blur: float,
) -> np.ndarray:
    """Posterior ribs, sagging towards the side, and fainter anterior ones that cross them."""
    start = top + 0.05
    cage = step(inside + 0.06, 0.06)

    def family(v: np.ndarray, gap: float, width: float) -> np.ndarray:
        turns = (v - start) * (1.0 / gap)
        distance = np.abs(turns % 1.0 - 0.5) * gap
        shaft = step(width - distance, 1.6 * blur)
        cortex = np.minimum(distance * (1.0 / width), 1.0) ** 2
        present = step(turns, 0.5) * step(10.2 - turns, 0.8)
        return shaft * (0.55 + 0.45 * cortex) * present

    back = family(y - a.rib_sag * (u - 0.16) ** 2 - 0.10 * breadth**6, a.rib_gap, a.rib_width)
    back *= step(u - a.spine_width, 0.04) * (1.0 + 0.9 * breadth**6)
    front = family(y + 0.55 * u - 0.34, 1.12 * a.rib_gap, 1.15 * a.rib_width)
    front *= step(breadth - 0.42, 0.25)
    return a.rib_density * cage * (back + 0.55 * front)


def _shoulders(
    a: Anatomy,
    u: np.ndarray,
    y: np.ndarray,
    top: float,
    side: np.ndarray,
    rng: np.random.Generator,
    blur: float,
) -> np.ndarray:
    """Clavicles and the blades of the scapulae."""
    lift = rng.uniform(-0.03, 0.03, 2).astype(np.float32)
    rise = np.where(side < 0, lift[0], lift[1])
    curve = top + 0.11 + rise - 0.13 * u - 0.035 * np.sin(8.0 * u - 0.2)
    distance = np.abs(y - curve)
    shaft = step(0.030 - distance, 1.6 * blur) * (0.6 + 400.0 * np.minimum(distance, 0.03) ** 2)
    clavicle = shaft * step(u - 0.075, 0.05) * step(a.cage_width + 0.03 - u, 0.08)
    edge = a.cage_width - 0.02 + 0.22 * (y + 0.35) + rise
    blade = step(u - edge, 2 * blur) * step(edge + 0.14 - u, 0.1)
    blade *= step(y + 0.62, 0.12) * step(0.02 - y, 0.15)
    return 0.20 * clavicle + 0.05 * blade


def _airway(x: np.ndarray, y: np.ndarray, hilum_y: float, blur: float) -> np.ndarray:
    """Trachea and main bronchi: columns of air in the mediastinum."""
    carina = hilum_y - 0.10
    trachea = step(0.038 - np.abs(x + 0.012), 2.5 * blur) * step(carina + 0.02 - y, 0.06)
    fall = y - carina
    branch = step(0.026 - np.abs(np.abs(x + 0.012) - 0.75 * fall - 0.012), 2.5 * blur)
    branch *= step(fall + 0.02, 0.03) * step(0.17 - fall, 0.08)
    return 0.13 * np.maximum(trachea, 0.8 * branch)


def _gas(
    a: Anatomy,
    pose: Pose,
    x: np.ndarray,
    y: np.ndarray,
    below: np.ndarray,
    rng: np.random.Generator,
    s: int,
) -> np.ndarray:
    """The gastric bubble under the left dome and loops of bowel lower down."""
    bowel = smooth(rng.standard_normal((14, 14)).astype(np.float32), s)
    loops = step(bowel - 0.35, 0.35) * step(below - np.where(x < 0, np.float32(0.48), 0.28), 0.2)
    centre_y = a.diaphragm + pose.inspiration + 0.17
    r = np.sqrt(((x - 0.33) * (1.0 / 0.17)) ** 2 + ((y - centre_y) * (1.0 / 0.10)) ** 2)
    bubble = a.stomach * step(1.0 - r, 0.35)
    return 0.30 * np.maximum(loops, bubble) * step(below - 0.015, 0.04)


def _streaks(
    u: np.ndarray, v: np.ndarray, side: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Markings that leave each hilum, fan out, divide and fade towards the edge of the lung."""
    bends = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    left = (side > 0).astype(np.int32)  # the patient's left has a tree of its own
    r = np.sqrt(u * u + v * v) + 1e-6
    angle = np.arctan2(v, u) + np.where(side < 0, bends[0], bends[1]) * r
    turns = angle * (0.5 / np.pi)
    turns -= np.floor(turns)
    field = np.zeros_like(r)
    for count, near, far in ((18, 0.04, 0.20), (34, 0.16, 0.36), (60, 0.30, 0.60)):
        table = rng.random((2, count)).astype(np.float32)
        table = np.concatenate([table, table[:, :2]], axis=1).ravel()  # closes the circle
        position = turns * count
        low = position.astype(np.int32)
        t = position - low
        t = t * t * (3.0 - 2.0 * t)
        low += left * np.int32(count + 2)
        value = table.take(low) * (1.0 - t) + table.take(low + 1) * t
        ridge = np.clip(value * 2.2 - 1.1, 0.0, 1.0)
        field += ridge * step(r - near, 0.14) * step(far - r, 0.2)
    hilum = np.exp(-((r * (1.0 / 0.085)) ** 2))
    return (field * np.exp(r * (-1.0 / 0.34)) * 1.5 + 0.9 * hilum).astype(np.float32)
