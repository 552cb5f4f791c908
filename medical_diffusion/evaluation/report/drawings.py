"""Pictures of a report: sheets of images, the overlap of features, copies beside what they copy, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medical_diffusion.evaluation.copies import aligned, working_size
from medical_diffusion.evaluation.copy_rate import CopyRate
from medical_diffusion.pictures import picture_of, planes, to_grey

TILE = 96
GAP = 3
SHEET = 50
COLUMNS = 10
PAIRS = 10
COLOURS = ((40, 40, 40), (214, 96, 20), (30, 110, 190), (20, 140, 80), (150, 60, 160), (180, 150, 20))
WHITE = 255


def sheet(images: Any, seed: int = 0, count: int = SHEET) -> np.ndarray:
    """Up to fifty images, drawn at random, ten a row; of a volume its middle axial slice."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return _grid([tile(images[int(n)]) for n in chosen], COLUMNS)


def pairs(samples: Any, training: Any, copies: CopyRate, count: int = PAIRS) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The samples nearest to a training image (above) turned onto it, and that image (below); a list of them."""
    order = copies.matches.scores.argsort(descending=True)[:count].tolist()
    above, below, listed = [], [], []
    matches = copies.matches
    for n in order:
        above.append(_aligned_tile(samples[n], matches.flips[n], matches.shifts[n]))
        below.append(tile(training[int(matches.indices[n])]))
        listed.append(
            {
                "sample": n,
                "training_image": int(matches.indices[n]),
                "score": float(matches.scores[n]),
                "correlation": float(matches.correlations[n]),
                "copy": bool(copies.flagged[n]),
            }
        )
    return np.concatenate([_grid(above, count), _grid(below, count)]), listed


def feature_pairs(samples: Any, training: Any, listed: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Samples (above) turned onto their nearest training images in the space of features (below)."""
    above = [_aligned_tile(samples[pair["sample"]], pair["flips"], pair["shift"]) for pair in listed]
    below = [tile(training[pair["training_image"]]) for pair in listed]
    return np.concatenate([_grid(above, len(listed)), _grid(below, len(listed))])


def feature_overlap(features: Mapping[str, np.ndarray], side: int = 420) -> np.ndarray:
    """Features on the first two principal axes of the real ones, one panel a generator over the real images."""
    from PIL import Image, ImageDraw

    real = features["real"].astype(np.float64)
    mean = real.mean(0)
    _, _, axes = np.linalg.svd(real - mean, full_matrices=False)
    points = {name: (rows - mean) @ axes[:2].T for name, rows in features.items()}
    stacked = np.concatenate(list(points.values()))
    if stacked.shape[1] < 2:
        stacked = np.pad(stacked, ((0, 0), (0, 2 - stacked.shape[1])))
    low, high = np.quantile(stacked, 0.005, axis=0), np.quantile(stacked, 0.995, axis=0)
    span = np.maximum(high - low, 1e-9)
    panels = []
    for index, name in enumerate([name for name in points if name != "real"], start=1):
        picture = Image.new("RGB", (side, side + 20), (WHITE,) * 3)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, 20, side - 1, side + 19), outline=(200, 200, 200))
        colours = {"real": COLOURS[0], name: COLOURS[1 + (index - 1) % (len(COLOURS) - 1)]}
        for key, colour in sorted(colours.items(), key=lambda item: -len(points[item[0]])):  # the fewer points on top
            places = np.clip((points[key] - low) / span, 0, 1) * (side - 16) + 8
            for x, y in places:
                draw.ellipse((x - 2, y + 18, x + 2, y + 22), fill=colour)
        draw.text((4, 4), f"real: black; {name}: coloured", fill=(60, 60, 60))
        panels.append(np.asarray(picture))
    return np.concatenate(panels, axis=1)


def intervals(entries: Mapping[str, Mapping[str, Any]], unit: str = "", width: int = 620) -> np.ndarray:
    """One line a figure: its value as a dot, its interval as a bar."""
    from PIL import Image, ImageDraw

    known = {name: e for name, e in entries.items() if e.get("value") is not None}
    picture = Image.new("RGB", (width, 26 * max(1, len(known)) + 24), (WHITE,) * 3)
    draw = ImageDraw.Draw(picture)
    if not known:
        draw.text((4, 6), "no figures", fill=(90, 90, 90))
        return np.asarray(picture)
    ends = [e.get(k) for e in known.values() for k in ("value", "low", "high")]
    values = [float(v) for v in ends if v is not None]
    low, span = min(values), max(max(values) - min(values), 1e-9)

    def place(value: float) -> float:
        return 180 + (width - 260) * (value - low) / span

    for row, (name, entry) in enumerate(known.items()):
        y, colour = 26 * row + 14, COLOURS[row % len(COLOURS)]
        draw.text((6, y - 6), name[:28], fill=(60, 60, 60))
        if entry.get("low") is not None and entry.get("high") is not None:
            draw.line((place(entry["low"]), y, place(entry["high"]), y), fill=colour, width=3)
        x = place(entry["value"])
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        draw.text((width - 70, y - 6), f"{entry['value']:.4g}", fill=(60, 60, 60))
    draw.text((180, 26 * len(known) + 6), f"{low:.3g} to {low + span:.3g} {unit}", fill=(130, 130, 130))
    return np.asarray(picture)


def tile(image: Tensor) -> np.ndarray:
    """An image, or the middle axial slice of a volume, as RGB bytes in a square."""
    plane = planes(picture_of(image))[0]
    grey = to_grey(plane, -1.0, 1.0)
    colour = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
    longest = max(colour.shape[:2])
    rows, columns = (max(1, round(TILE * n / longest)) for n in colour.shape[:2])
    tensor = torch.from_numpy(colour.copy()).permute(2, 0, 1)[None].float()
    mode = "nearest" if longest <= TILE else "area"
    resized = torch.nn.functional.interpolate(tensor, (rows, columns), mode=mode)[0].permute(1, 2, 0)
    square = np.zeros((TILE, TILE, 3), np.uint8)
    top, left = (TILE - rows) // 2, (TILE - columns) // 2
    square[top : top + rows, left : left + columns] = resized.round().byte().numpy()
    return square


def _aligned_tile(sample: Tensor, flips: Sequence[int], shift: Sequence[int]) -> np.ndarray:
    return tile(aligned(sample, flips, shift, working_size(sample.shape[1:])))


def _grid(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    rows = -(-len(tiles) // columns)
    step = TILE + GAP
    canvas = np.full((rows * step + GAP, min(columns, len(tiles)) * step + GAP, 3), WHITE, np.uint8)
    for n, picture in enumerate(tiles):
        y, x = GAP + step * (n // columns), GAP + step * (n % columns)
        canvas[y : y + TILE, x : x + TILE] = picture
    return canvas
