"""Make a data set of camera motions: OUT/train/<class>/*.mp4 and OUT/val/<class>/*.mp4.

A virtual camera looks at photographs that ship with scikit-image and at drawn scenes, and pans, tilts, zooms,
rolls or stays. Classes are seen from behind the camera: 'pan left' moves the picture to the right, 'tilt up'
moves it down, 'zoom in' lets it grow, 'roll clockwise' turns it counter-clockwise. Hands shake, things cross
the picture, light changes, cameras are noisy and files are compressed, all drawn without a look at the class.
Validation clips show other photographs than training clips.

Every clip is drawn from (seed, split, number) alone, so the data set does not depend on the workers.

Run: python examples/camera_motion/generate.py --out data --train 16000 --val 1800
Needs, beside vswin-cli: pip install scikit-image
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

CLASSES = (
    "static",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "zoom in",
    "zoom out",
    "roll clockwise",
    "roll counter-clockwise",
)
SPLITS = ("train", "val")

#: Photographs in the package of scikit-image (nothing is downloaded). No picture is in both splits.
PHOTOS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut",
        "brick",
        "camera",
        "logo",
        "grass",
        "hubble_deep_field",
        "immunohistochemistry",
        "moon",
        "page",
        "stereo_motorcycle",
    ),
    "val": ("chelsea", "coffee", "coins", "gravel", "retina", "rocket", "text"),
}

#: Axis of the camera and sign for each class: 0 right, 1 down, 2 in (log of scale), 3 clockwise (radians).
_MOTION: dict[str, tuple[int, int]] = {
    "pan left": (0, -1),
    "pan right": (0, 1),
    "tilt up": (1, -1),
    "tilt down": (1, 1),
    "zoom in": (2, 1),
    "zoom out": (2, -1),
    "roll clockwise": (3, 1),
    "roll counter-clockwise": (3, -1),
}
#: Mean speed in the picture (short sides per frame) for one unit of each axis: a point of a square is 0.38
#: sides away from its centre on average.
_FLOW = np.array([1.0, 1.0, 0.38, 0.38])


def between(easy: float, hard: float, difficulty: float) -> float:
    """Interpolate a setting."""
    return easy + (hard - easy) * difficulty


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# ------------------------------------------------------------------------------------------------
# What the camera looks at: still pictures (H, W, 3)


@lru_cache(maxsize=32)
def photo(name: str) -> Picture:
    """A photograph of scikit-image as RGB."""
    from skimage import data

    loaded = getattr(data, name)()
    picture = np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)
    if picture.dtype != np.uint8:
        picture = (picture * 255).astype(np.uint8)
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, 2)
    return np.ascontiguousarray(picture[:, :, :3])


def photo_scene(rng: Generator, split: str) -> Picture:
    """A photograph, perhaps mirrored, turned by quarters and recoloured."""
    picture = photo(str(rng.choice(PHOTOS[split])))
    picture = np.rot90(picture, int(rng.integers(4)))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() < 0.4:
        picture = picture[:, :, rng.permutation(3)]
    if rng.random() < 0.08:
        picture = 255 - picture
    if max(picture.shape) > 1000:
        picture = np.asarray(
            cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), np.uint8
        )
    return np.ascontiguousarray(picture)


def noise(
    rng: Generator, size: int, slope: float, coarsest: int = 3, channels: int = 1
) -> NDArray[np.float32]:
    """Octaves of smooth noise, (size, size, channels) in 0..1; each octave is weaker by ``slope``."""
    field = rng.random((coarsest, coarsest, channels), np.float32)
    weight = 1.0
    while (side := 2 * field.shape[0]) < 0.7 * size:
        weight *= slope
        finer = cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, channels)
        field = finer + np.float32(weight) * rng.random((side, side, channels), np.float32)
    low, high = np.percentile(field[::4, ::4], (1, 99))
    field = np.clip((field - low) / (high - low), 0, 1)
    field = np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR), np.float32)
    return field.reshape(size, size, channels)


def colour(rng: Generator) -> tuple[int, int, int]:
    """Any colour."""
    r, g, b = rng.integers(0, 256, 3)
    return int(r), int(g), int(b)


def clouds(rng: Generator, size: int) -> Picture:
    """Noise between two colours, or of all colours."""
    plain = rng.random() < 0.7
    field = noise(rng, size, rng.uniform(0.45, 0.85), int(rng.integers(2, 9)), 1 if plain else 3)
    if plain:
        if rng.random() < 0.3:
            field = np.abs(2 * field - 1)
        dark = rng.integers(0, 110, 3).astype(np.float32)
        bright = rng.integers(120, 256, 3).astype(np.float32)
        return (dark + (bright - dark) * field).astype(np.uint8)
    return (field * 255).astype(np.uint8)


def background(rng: Generator, size: int) -> Picture:
    """A quiet ground to draw on: a gradient or clouds."""
    if rng.random() < 0.4:
        return clouds(rng, size)
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def shapes(rng: Generator, size: int) -> Picture:
    """Discs, rectangles, polygons and lines over each other, large ones first."""
    picture = background(rng, size)
    count = int(rng.integers(40, 160))
    for radius in np.sort(np.exp(rng.uniform(np.log(5), np.log(size / 6), count)))[::-1]:
        x, y = (int(v) for v in rng.integers(0, size, 2))
        r, paint = int(radius), colour(rng)
        kind = rng.integers(4)
        if kind == 0:
            cv2.circle(picture, (x, y), r, paint, -1, cv2.LINE_AA)
        elif kind == 1:
            box = cv2.boxPoints(((x, y), (2 * r, r * rng.uniform(0.4, 2)), rng.uniform(0, 90)))
            cv2.fillConvexPoly(picture, box.astype(np.int32), paint, cv2.LINE_AA)
        elif kind == 2:
            points = np.array([x, y]) + rng.integers(-r, r + 1, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(picture, [points.astype(np.int32)], paint, cv2.LINE_AA)
        else:
            end = (x + int(rng.integers(-3 * r, 3 * r + 1)), y + int(rng.integers(-3 * r, 3 * r + 1)))
            cv2.line(picture, (x, y), end, paint, int(rng.integers(1, 7)), cv2.LINE_AA)
    return picture


def tiles(rng: Generator, size: int) -> Picture:
    """A checkerboard or a wall of unequal tiles, seen at an angle; dirty, so that no two places are alike."""
    side = int(rng.integers(24, 90))
    n = size // side + 2
    if rng.random() < 0.5:
        board = np.where((np.indices((n, n)).sum(0) % 2)[:, :, None], colour(rng), colour(rng))
        board = board + rng.integers(-40, 41, (n, n, 1))
    else:
        board = rng.integers(0, 256, (n, n, 3))
    board = np.clip(board, 0, 255).astype(np.uint8)
    picture = cv2.resize(board, (n * side, n * side), interpolation=cv2.INTER_NEAREST)[:size, :size]
    if rng.random() < 0.5:
        picture = np.ascontiguousarray(picture)
        joint = colour(rng)
        for line in range(0, size, side):
            picture[line : line + 2] = joint
            picture[:, line : line + 2] = joint
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0, 360), 1.0)
    picture = cv2.warpAffine(picture, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    dirt = clouds(rng, size)
    share = float(rng.uniform(0.2, 0.5))
    return np.asarray(cv2.addWeighted(picture, 1 - share, dirt, share, 0), np.uint8)


def stripes(rng: Generator, size: int) -> Picture:
    """Bands of unequal width and any angle, with things lying on them."""
    ends = np.cumsum(rng.integers(6, 60, size // 6))
    bands = rng.integers(0, 256, (len(ends), 3))
    row = bands[np.searchsorted(ends, np.arange(size))].astype(np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(row, (size, size, 3)))
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0, 360), 1.0)
    picture = np.asarray(
        cv2.warpAffine(picture, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101), np.uint8
    )
    over = shapes(rng, size)
    mask = noise(rng, size, 0.5, int(rng.integers(4, 10)))[:, :, 0] > rng.uniform(0.4, 0.6)
    picture[mask] = over[mask]
    return picture


def writing(rng: Generator, size: int) -> Picture:
    """Letters of many sizes."""
    picture = background(rng, size)
    if rng.random() < 0.5:
        picture[:] = colour(rng)
    letters = np.array(list("ABCDEFGHIJKLMNOPRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789&%?!+"))
    ink = colour(rng)
    for _ in range(int(rng.integers(30, 90))):
        word = "".join(rng.choice(letters, int(rng.integers(2, 12))))
        place = int(rng.integers(-40, size)), int(rng.integers(0, size))
        scale = log_uniform(rng, 0.5, 3.5)
        paint = ink if rng.random() < 0.6 else colour(rng)
        font = int(rng.integers(0, 8))
        cv2.putText(picture, word, place, font, scale, paint, max(1, int(scale * 1.5)), cv2.LINE_AA)
    return picture


def street(rng: Generator, size: int) -> Picture:
    """Sky, a row of houses with lit and dark windows, and ground."""
    picture = background(rng, size)
    horizon = int(size * rng.uniform(0.5, 0.8))
    ground = clouds(rng, size)
    picture[horizon:] = ground[horizon:]
    x = -int(rng.integers(0, 60))
    while x < size:
        width, height = int(rng.integers(40, 150)), int(rng.integers(60, max(61, horizon)))
        top = horizon - height
        cv2.rectangle(picture, (x, top), (x + width, horizon), colour(rng), -1)
        step = int(rng.integers(14, 30))
        lit, dark = colour(rng), colour(rng)
        for wy in range(top + 6, horizon - step // 2, step):
            for wx in range(x + 6, x + width - step // 2, step):
                paint = lit if rng.random() < 0.5 else dark
                cv2.rectangle(picture, (wx, wy), (wx + step // 2, wy + step // 2), paint, -1)
        x += width + int(rng.integers(0, 30))
    return picture


def blobs(rng: Generator, size: int) -> Picture:
    """Soft spots, nothing sharp."""
    return np.asarray(cv2.GaussianBlur(shapes(rng, size), (0, 0), rng.uniform(2, 5)), np.uint8)


DRAWN: tuple[Callable[[Generator, int], Picture], ...] = (
    clouds,
    shapes,
    shapes,
    tiles,
    stripes,
    writing,
    street,
    blobs,
)


def drawn_scene(rng: Generator, size: int) -> Picture:
    """A drawn scene of any kind; now and then one on top of another through holes."""
    picture = DRAWN[int(rng.integers(len(DRAWN)))](rng, size)
    if rng.random() < 0.15:
        over = DRAWN[int(rng.integers(len(DRAWN)))](rng, size)
        mask = noise(rng, size, 0.5, int(rng.integers(3, 8)))[:, :, 0] > 0.5
        picture[mask] = over[mask]
    if rng.random() < 0.7:  # the world is less colourful than a generator of random numbers
        gray = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2)
        share = float(rng.uniform(0.2, 0.9))
        picture = np.asarray(cv2.addWeighted(picture, 1 - share, gray, share, 0), np.uint8)
    return picture


# ------------------------------------------------------------------------------------------------
# How the camera moves


@dataclass(frozen=True)
class Path4:
    """Poses of the camera: centre (n, 2) and logarithm of the scale and angle (n,); the unit of length is the
    picture's short side at the middle of the clip."""

    centre: Floats
    zoom: Floats
    angle: Floats

    def deeper(self, depth: float) -> Path4:
        """The path as things at another depth see it: nearer ones move more."""
        return Path4(self.centre * depth, self.zoom * depth, self.angle)


def camera_path(rng: Generator, motion: str, frames: int, difficulty: float) -> Path4:
    """Speeds along the four axes, summed up, and shake on top."""
    slowest = np.array([0.006, 0.006, 0.008, np.radians(0.7)]) * (1 - difficulty)
    slowest += np.array([0.003, 0.003, 0.004, np.radians(0.4)]) * difficulty
    fastest = np.array([0.02, 0.02, 0.016, np.radians(2.0)])
    # The same numbers are drawn whatever the class.
    ease = [1 + rng.uniform(-0.5, 0.5) * np.linspace(-1, 1, frames) for _ in range(4)]
    phase = rng.uniform(0, 2 * np.pi, 4)
    waves = rng.uniform(0.3, 1.2, 4)
    wave = [np.sin(p + 2 * np.pi * w * np.linspace(0, 1, frames)) for p, w in zip(phase, waves, strict=True)]
    profile = np.maximum(0.5, np.array(ease) + 0.15 * np.array(wave))
    strength = rng.random()
    side = rng.uniform(-1, 1, 4) * between(0.08, 0.25, difficulty)
    moving = np.zeros((4, frames))
    if motion in _MOTION:
        axis, sign = _MOTION[motion]
        speed = slowest[axis] * (fastest[axis] / slowest[axis]) ** strength
        flow = speed * _FLOW[axis]
        side[axis] = 0
        moving[axis] = sign * speed * profile[axis]
    else:
        flow = 0.002
    moving += (side * flow / _FLOW)[:, None] * profile * np.array(wave)
    if rng.random() < 0.3:  # on a tripod
        shake = np.zeros((4, frames))
    else:
        sizes = np.array([0.006, 0.006, 0.002, np.radians(0.35)]) * between(0.3, 1.0, difficulty)
        sizes = sizes * rng.random() * rng.uniform(0.3, 1, 4)
        shake = sizes[:, None] * smooth(rng.standard_normal((4, frames)), rng.uniform(0.6, 2.5))
    if motion == "static" and rng.random() < 0.3:
        moving[:] = 0
    x, y, zoom, angle = np.cumsum(moving, 1) + shake
    middle = frames // 2
    zoom, angle = zoom - zoom[middle], angle - angle[middle]
    # Right and down are the camera's own: turn the steps with it, and shrink them with what it sees.
    dx, dy = np.diff(x, prepend=x[0]) * np.exp(-zoom), np.diff(y, prepend=y[0]) * np.exp(-zoom)
    cos, sin = np.cos(angle), np.sin(angle)
    centre = np.cumsum(np.stack([cos * dx - sin * dy, sin * dx + cos * dy], 1), 0)
    return Path4(centre - centre[middle], zoom, angle)


def smooth(signal: Floats, sigma: float) -> Floats:
    """Gaussian filter along the last axis; each row comes out with variance 1 about 0."""
    width = int(3 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-width, width + 1) / sigma) ** 2)
    padded = np.pad(signal, ((0, 0), (width, width)), mode="reflect")
    rows = np.array([np.convolve(row, kernel, "valid") for row in padded])
    rows -= rows.mean(1, keepdims=True)
    result: Floats = rows / np.maximum(rows.std(1, keepdims=True), 1e-9)
    return result


def matrices(path: Path4, tilt: float) -> Floats:
    """(n, 3, 3): picture coordinates (short side 1, origin in the centre) -> the scene's."""
    cos, sin, scale = np.cos(path.angle + tilt), np.sin(path.angle + tilt), np.exp(-path.zoom)
    out = np.zeros((len(scale), 3, 3))
    out[:, 0, 0], out[:, 0, 1] = scale * cos, -scale * sin
    out[:, 1, 0], out[:, 1, 1] = scale * sin, scale * cos
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    out[:, :2, 2] = path.centre @ turn.T
    out[:, 2, 2] = 1
    return out


def move(x: float, y: float, scale: float = 1.0) -> Floats:
    """Scale, then move."""
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])


# ------------------------------------------------------------------------------------------------
# Layers and things


@dataclass(frozen=True)
class Layer:
    """A still picture, with holes where ``mask`` is 0, and per frame the matrix from output pixels to it."""

    picture: Picture
    mask: Picture | None
    views: Floats


@dataclass(frozen=True)
class Thing:
    """A cut-out that moves by itself: per frame the matrix from its pixels to output pixels."""

    picture: Picture
    mask: Picture
    places: Floats


def lay(
    rng: Generator, picture: Picture, mask: Picture | None, path: Path4, size: tuple[int, int], filtered: bool
) -> Layer:
    """Place the camera over a picture so that all it sees is inside (mirrored beyond, if it cannot be)."""
    width, height = size
    short = min(size)
    to_scene = matrices(path, rng.choice([0.0, rng.uniform(-0.3, 0.3)]))
    x, y = width / short / 2, height / short / 2
    corners = np.array([[-x, -y, 1], [x, -y, 1], [-x, y, 1], [x, y, 1]]).T
    seen = (to_scene @ corners)[:, :2]
    low, high = seen.min((0, 2)), seen.max((0, 2))
    extent = np.array([picture.shape[1] - 1, picture.shape[0] - 1])
    most = float((extent / (high - low)).min())
    unit = max(most * rng.uniform(0.5, 1), min(0.6 * short, 1.3 * most))  # source pixels for a short side
    free = extent - unit * (high - low)
    corner = rng.uniform(np.minimum(free, 0), np.maximum(free, 0)) - unit * low
    views = move(float(corner[0]), float(corner[1]), unit) @ to_scene @ move(-x, -y, 1 / short)
    ratio = unit / short
    if filtered and ratio > 1:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.5 * ratio), np.uint8)
    return Layer(picture, mask, views)


def make_thing(
    rng: Generator, world: Floats, size: tuple[int, int], texture: Picture, difficulty: float
) -> Thing:
    """A textured disc, rectangle or blob that crosses the picture in any direction, at any time."""
    frames, short = len(world), min(size)
    n = 64
    side = min(*texture.shape[:2], int(rng.integers(40, 200)))
    y, x = (int(rng.integers(0, length - side + 1)) for length in texture.shape[:2])
    piece = texture[y : y + side, x : x + side]
    picture = np.asarray(cv2.resize(piece, (n, n), interpolation=cv2.INTER_AREA), np.uint8)
    if rng.random() < 0.5:
        picture = 255 - picture
    if rng.random() < 0.3:
        picture = np.asarray(
            cv2.addWeighted(picture, 0.3, np.full_like(picture, colour(rng)), 0.7, 0), np.uint8
        )
    mask = np.zeros((n, n), np.uint8)
    kind = rng.integers(3)
    if kind == 0:
        cv2.circle(mask, (n // 2, n // 2), n // 2 - 3, 255, -1, cv2.LINE_AA)
    elif kind == 1:
        half = int(n * rng.uniform(0.15, 0.45))
        mask[n // 2 - half : n // 2 + half, 3:-3] = 255
    else:
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        radius = (n / 2 - 3) * rng.uniform(0.45, 1, 12)
        points = n / 2 + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(mask, [points.astype(np.int32)], 255, cv2.LINE_AA)
    extent = rng.uniform(0.1, between(0.25, 0.4, difficulty)) * short
    direction, speed = rng.uniform(0, 2 * np.pi), log_uniform(rng, 0.002, 0.03) * short
    when = np.arange(frames) - rng.uniform(0, frames)
    start = rng.uniform(0.1, 0.9, 2) * np.array(size)
    position = start + when[:, None] * speed * np.array([np.cos(direction), np.sin(direction)])
    spin = rng.uniform(0, 2 * np.pi) + rng.choice([0.0, rng.uniform(-0.06, 0.06)]) * when
    growth = np.exp(rng.choice([0.0, rng.uniform(-0.02, 0.02)]) * when)
    # In the world as the middle frame shows it; the camera's motion since then comes on top.
    since = np.linalg.inv(world) @ world[frames // 2]
    if rng.random() < 0.2:  # it moves with the camera, or is a fly on the lens
        since[:] = np.eye(3)
    places = np.empty((frames, 3, 3))
    for i in range(frames):
        k = growth[i] * extent / n
        cos, sin = k * np.cos(spin[i]), k * np.sin(spin[i])
        own = np.array([[cos, -sin, position[i, 0]], [sin, cos, position[i, 1]], [0, 0, 1]])
        places[i] = since[i] @ own @ move(-n / 2, -n / 2)
    return Thing(picture, mask, places)


def paste(frame: Picture, thing: Thing, i: int) -> None:
    """Draw a thing into a frame."""
    n = len(thing.mask)
    corners = thing.places[i] @ np.array([[0, n, 0, n], [0, 0, n, n], [1, 1, 1, 1]])
    x0, y0 = (max(0, int(v)) for v in np.floor(corners[:2].min(1)))
    x1 = min(frame.shape[1], int(corners[0].max()) + 2)
    y1 = min(frame.shape[0], int(corners[1].max()) + 2)
    if x1 <= x0 or y1 <= y0:
        return
    matrix = (move(-x0, -y0) @ thing.places[i])[:2]
    over = cv2.warpAffine(thing.picture, matrix, (x1 - x0, y1 - y0), borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(thing.mask, matrix, (x1 - x0, y1 - y0))
    blend(frame[y0:y1, x0:x1], np.asarray(over, np.uint8), np.asarray(mask, np.uint8))


def blend(under: Picture, over: Picture, mask: Picture) -> None:
    """Put ``over`` on ``under``, in place."""
    share = mask[:, :, None].astype(np.uint16)
    under[:] = (over * share + under * (255 - share)) // 255


# ------------------------------------------------------------------------------------------------
# What happens to the picture between the lens and the file


@dataclass(frozen=True)
class Look:
    """Light, lens and sensor of one clip."""

    curves: Picture  # (frames, 256, 3)
    blur: float
    vignette: Picture | None
    grain: NDArray[np.int8] | None
    gray: bool
    overlay: tuple[str, tuple[int, int], tuple[int, int, int]] | None
    bars: int


def make_look(rng: Generator, frames: int, size: tuple[int, int], difficulty: float) -> Look:
    """Draw the look of a clip."""
    d = difficulty
    width, height = size
    time_ = np.linspace(-1, 1, frames)
    gain = np.full(frames, rng.uniform(0.7, 1.25))
    gamma = np.full(frames, log_uniform(rng, 0.7, 1.4))
    if rng.random() < 0.4 * d:
        gain = gain * np.exp(rng.uniform(-0.5, 0.5) * time_)  # drift
    if rng.random() < 0.15 * d:
        gain = gain * np.where(np.arange(frames) < rng.integers(2, frames), 1, log_uniform(rng, 0.5, 1.8))
    if rng.random() < 0.2 * d:
        gain = gain * np.exp(rng.uniform(0, 0.12) * rng.standard_normal(frames))  # flicker
    if rng.random() < 0.2 * d:
        gamma = gamma * np.exp(rng.uniform(-0.4, 0.4) * time_)
    tint = np.exp(rng.uniform(-0.15, 0.15, 3))
    levels = np.linspace(0, 1, 256)[None, :, None] ** gamma[:, None, None] * gain[:, None, None] * tint
    lift = rng.uniform(0, 0.15)
    curves = (np.clip(lift + (1 - lift) * levels, 0, 1) * 255).astype(np.uint8)
    blur = rng.uniform(0.4, 1.3) * min(size) / 128 if rng.random() < 0.25 * d else 0.0
    vignette = None
    if rng.random() < 0.15 * d:
        ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        shade = 255 * (1 - rng.uniform(0.1, 0.35) * (xs**2 + ys**2))
        vignette = np.repeat(shade.astype(np.uint8)[:, :, None], 3, 2)
    grain = None
    if rng.random() < 0.5 * d:
        strength = rng.uniform(1, 12)
        cells = (height + 64, width + 64, 1 if rng.random() < 0.5 else 3)
        grain = np.clip(rng.standard_normal(cells, np.float32) * strength, -60, 60).astype(np.int8)
    overlay = None
    if rng.random() < 0.08 * d:
        place = int(rng.uniform(0, 0.7) * width), int(rng.uniform(0.08, 0.98) * height)
        overlay = (str(int(rng.integers(100, 100000))), place, colour(rng))
    bars = int(rng.uniform(0.03, 0.1) * height) if rng.random() < 0.05 * d else 0
    return Look(curves, blur, vignette, grain, bool(rng.random() < 0.1), overlay, bars)


def develop(rng: Generator, frame: Picture, look: Look, i: int) -> Picture:
    """Apply the look to frame ``i``."""
    if look.blur:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), look.blur), np.uint8)
    frame = np.asarray(cv2.LUT(frame, look.curves[i : i + 1]), np.uint8)
    if look.vignette is not None:
        frame = np.asarray(cv2.multiply(frame, look.vignette, scale=1 / 255), np.uint8)
    if look.grain is not None:
        y, x = (int(v) for v in rng.integers(0, 64, 2))
        grain = look.grain[y : y + frame.shape[0], x : x + frame.shape[1]]
        frame = np.clip(frame.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    if look.gray:
        frame = np.repeat(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2)
    if look.overlay is not None:
        text, place, paint = look.overlay
        scale = frame.shape[0] / 300
        cv2.putText(frame, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, paint, 1, cv2.LINE_AA)
    if look.bars:
        frame[: look.bars] = 0
        frame[-look.bars :] = 0
    return frame


# ------------------------------------------------------------------------------------------------
# A clip


@dataclass(frozen=True)
class Clip:
    """Frames (n, H, W, 3), the motion they show, and how they are to be written."""

    frames: Picture
    motion: str
    rate: Fraction
    codec: str
    options: dict[str, str]


def frame_size(rng: Generator) -> tuple[int, int]:
    """Even width and height; mostly small."""
    low, high = [(96, 161), (160, 241), (240, 361)][int(rng.choice(3, p=[0.8, 0.13, 0.07]))]
    short = int(rng.integers(low, high))
    long = int(short * rng.choice([1.0, 4 / 3, 4 / 3, 1.5, 16 / 9, 16 / 9]))
    short, long = short // 2 * 2, long // 2 * 2
    return (long, short) if rng.random() < 0.75 else (short, long)


def any_scene(rng: Generator, split: str) -> Picture:
    """A photograph or a drawn scene."""
    if rng.random() < 0.5:
        return photo_scene(rng, split)
    return drawn_scene(rng, int(rng.integers(400, 600)))


def texture_of(frame: Picture) -> float:
    """How much there is to see by which motion could be told: the poorest of nine parts of the picture."""
    gray = cv2.cvtColor(cv2.resize(frame, (96, 96), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    gray = cv2.GaussianBlur(gray, (0, 0), 1).astype(np.float32)
    across = np.abs(np.diff(gray, axis=1))[:-1].reshape(5, 19, 5, 19).mean((1, 3))
    down = np.abs(np.diff(gray, axis=0))[:, :-1].reshape(5, 19, 5, 19).mean((1, 3))
    return float(np.sort(np.minimum(across, down).ravel())[8])


def draw_clip(
    seed: int, split: str, index: int, difficulty: float, size: tuple[int, int] | None = None
) -> Clip:
    """Clip ``index`` of a split. ``size`` overrides (width, height)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    motion = CLASSES[index % len(CLASSES)]
    size = size or frame_size(rng)
    frames = int(rng.integers(33, 45))  # 16 of them, every second, and some to choose from
    path = camera_path(rng, motion, frames, difficulty)
    filtered = bool(rng.random() < 0.5)
    for _ in range(4):
        base = lay(rng, any_scene(rng, split), None, path, size, filtered)
        sample = cv2.warpAffine(
            base.picture, base.views[frames // 2][:2], size, flags=_INVERSE, borderMode=_MIRROR
        )
        if texture_of(np.asarray(sample, np.uint8)) > 1.5:
            break
    layers = [base]
    if rng.random() < 0.25 * difficulty:
        near = drawn_scene(rng, 400)
        field = noise(rng, 400, 0.5, int(rng.integers(4, 9)))[:, :, 0]
        mask = (np.clip((field - rng.uniform(0.5, 0.75)) * 30, 0, 1) * 255).astype(np.uint8)
        layers.append(lay(rng, near, mask, path.deeper(rng.uniform(1.1, 1.8)), size, filtered))
    things = []
    for _ in range(
        int(rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])) if rng.random() < 0.3 + 0.7 * difficulty else 0
    ):
        texture = base.picture if rng.random() < 0.5 else clouds(rng, 96)
        things.append(make_thing(rng, base.views, size, texture, difficulty))
    look = make_look(rng, frames, size, difficulty)
    smear = int(rng.random() < 0.15 * difficulty) * rng.uniform(0.3, 0.9)
    pictures = np.empty((frames, size[1], size[0], 3), np.uint8)
    for i in range(frames):
        frame = shoot(layers, i, size, smear)
        for thing in things:
            paste(frame, thing, i)
        pictures[i] = develop(rng, frame, look, i)
    rate = Fraction(int(rng.choice([12, 15, 24, 25, 30, 30, 50, 60])))
    key = str(int(rng.choice([10, 25, 60, 250])))
    if rng.random() < 0.15:
        quality = str(int(rng.integers(2, round(between(5, 12, difficulty)) + 1)))
        return Clip(pictures, motion, rate, "mpeg4", {"qmin": quality, "qmax": quality, "g": key})
    crf = str(int(rng.integers(18, round(between(24, 36, difficulty)) + 1)))
    preset = str(rng.choice(["ultrafast", "superfast", "veryfast"], p=[0.5, 0.3, 0.2]))
    return Clip(pictures, motion, rate, "libx264", {"crf": crf, "preset": preset, "g": key})


_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_MIRROR = cv2.BORDER_REFLECT_101


def shoot(layers: list[Layer], i: int, size: tuple[int, int], smear: float) -> Picture:
    """Frame ``i`` of what is still; ``smear`` is the share of a frame's time that the shutter is open."""
    out: Picture | None = None
    for layer in layers:
        view = layer.views[i][:2]
        picture = np.asarray(
            cv2.warpAffine(layer.picture, view, size, flags=_INVERSE, borderMode=_MIRROR), np.uint8
        )
        if smear:
            after = layer.views[min(i + 1, len(layer.views) - 1)][:2]
            total = picture.astype(np.uint16)
            for part in (0.33, 0.67, 1.0):
                between_ = view + (after - view) * smear * part
                later = cv2.warpAffine(layer.picture, between_, size, flags=_INVERSE, borderMode=_MIRROR)
                total += np.asarray(later, np.uint8)
            picture = (total // 4).astype(np.uint8)
        if out is None:
            out = picture
        elif layer.mask is not None:
            mask = cv2.warpAffine(layer.mask, view, size, flags=_INVERSE, borderMode=_MIRROR)
            blend(out, picture, np.asarray(mask, np.uint8))
    assert out is not None
    return out


def write(path: Path, clip: Clip) -> None:
    """Encode a clip."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(clip.codec, rate=clip.rate, options=clip.options)
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make(job: tuple[str, int], out: Path, seed: int, difficulty: float) -> None:
    """One file."""
    split, index = job
    clip = draw_clip(seed, split, index, difficulty)
    write(out / split / clip.motion / f"{index:06d}.mp4", clip)


def jobs(train: int, val: int) -> Iterator[tuple[str, int]]:
    """Every (split, index)."""
    for split, count in zip(SPLITS, (train, val), strict=True):
        yield from ((split, index) for index in range(count))


def quiet() -> None:
    """One thread a worker: they share the processor already."""
    cv2.setNumThreads(1)


def difficulty_of(text: str) -> float:
    """'easy', 'hard' or a number from 0 to 1."""
    value = {"easy": 0.0, "hard": 1.0}.get(text)
    value = float(text) if value is None else value
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def main() -> None:
    """Read the options, share the work."""
    parser = argparse.ArgumentParser(description="Make a data set of camera motions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write train/ and val/ to")
    parser.add_argument("--train", type=int, default=16_000, help="training clips in all")
    parser.add_argument("--val", type=int, default=1_800, help="validation clips in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difficulty", type=difficulty_of, default=1.0, help="easy, hard or 0..1")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for split in SPLITS:
        for motion in CLASSES:
            (options.out / split / motion).mkdir(parents=True, exist_ok=True)
    task = partial(make, out=options.out, seed=options.seed, difficulty=options.difficulty)
    total, start = options.train + options.val, time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.workers, quiet) as pool:
        work = pool.imap_unordered(task, jobs(options.train, options.val), chunksize=16)
        for done, _ in enumerate(work, 1):
            if done % 500 == 0 or done == total:
                print(
                    f"{done}/{total} clips, {done / (time.perf_counter() - start):.0f} a second", flush=True
                )


if __name__ == "__main__":
    main()
