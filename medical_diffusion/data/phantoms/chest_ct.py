"""Schematic chest CT: fat, muscle, ribs, spine, lungs with vessels and nodules, heart, great vessels, airways, liver.

Structures are laid over each other from the skin inwards, in HU. Orientation is RAS+: the heart lies at negative x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medical_diffusion.data.phantoms.primitives import Box, Canvas, Phantom, ellipsoid, rotation, smooth_max
from medical_diffusion.data.phantoms.thorax import LEFT, RIGHT, Thorax

MASK_LABELS = {
    "background": 0,
    "body": 1,
    "left_lung": 2,
    "right_lung": 3,
    "heart": 4,
    "spine": 5,
    "ribs": 6,
    "great_vessels": 7,
    "airways": 8,
    "liver": 9,
    "lung_vessels": 10,
    "nodules": 11,
}
VERSION = 1  # raised with every change of what a seed draws
HU = {
    "air": -1000,
    "fat": -100,
    "muscle": 50,
    "mediastinal_fat": -60,
    "abdomen": -10,
    "blood": 42,
    "heart": 45,
    "liver": 60,
    "spleen": 50,
    "stomach": 25,
    "vertebra": 290,
    "cortex": 620,
    "disc": 90,
    "canal": 15,
    "cartilage": 100,
    "airway": -960,
}
FIELD_OF_VIEW_MM = (320.0, 320.0, 320.0)
LUNG_LABEL = {LEFT: MASK_LABELS["left_lung"], RIGHT: MASK_LABELS["right_lung"]}
NOISE_LIMIT_HU = 20.0


def chest_ct_phantom(
    seed: int,
    image_size: int | Sequence[int] = (32, 32, 32),
    field_of_view: Sequence[float] = FIELD_OF_VIEW_MM,
) -> Phantom:
    """One phantom, the same anatomy for a seed at every size.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: voxels (H, W, D); an axis of size 1 is one 5 mm slice through the heart.
        field_of_view: mm along x, y, z.

    Returns:
        Phantom: image in HU, mask with ``MASK_LABELS``, and the facts ``heart_width_ratio``, ``nodules`` (a list of
        ``centre_mm`` in world coordinates, ``diameter_mm`` and ``side``) and others.

    Raises:
        UserError: a size or field of view that is not positive.
    """
    shape_rng, noise_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    thorax = Thorax.draw(shape_rng)
    canvas = Canvas(image_size, field_of_view, thorax.turn, thorax.shift, thorax.heart_centre, HU["air"])
    _draw_trunk(canvas, thorax)
    _draw_abdomen(canvas, thorax, shape_rng)
    lungs = _draw_lungs(canvas, thorax)
    _draw_heart_and_vessels(canvas, thorax)
    _draw_bones(canvas, thorax)
    hila = _draw_airways(canvas, thorax)
    _draw_lung_vessels(canvas, thorax, shape_rng, lungs, hila)
    nodules = _draw_nodules(canvas, thorax, shape_rng)

    image, mask = canvas.average()
    for centre, _ in nodules:  # a coarse voxel may hold too little of a nodule to be named after it
        voxel = canvas.voxel(centre)
        if voxel is not None:
            mask[voxel] = MASK_LABELS["nodules"]
    noise = min(thorax.noise_hu * float(np.sqrt(1000 / np.prod(canvas.spacing))), NOISE_LIMIT_HU)
    image = image + noise * noise_rng.standard_normal(image.shape, dtype=np.float32)
    facts = {
        "heart_width_ratio": round(thorax.heart_width_ratio, 4),
        "body_width_mm": round(2 * thorax.body[0], 1),
        "body_depth_mm": round(2 * thorax.body[1], 1),
        "lung_height_mm": round(thorax.apex - thorax.dome[RIGHT], 1),
        "breasts": thorax.breast > 0,
        "noise_hu": round(noise, 2),
        "nodules": [facts for _, facts in nodules],
    }
    return Phantom(np.clip(image, -1024, 3071), mask, canvas.affine, facts)


def _draw_trunk(canvas: Canvas, thorax: Thorax) -> None:
    """Skin, subcutaneous fat, muscle."""
    (width, depth), body = thorax.body, MASK_LABELS["body"]
    bottom, top = canvas.height
    box = canvas.region((-width, -depth, bottom), (width, depth + thorax.breast, top))
    p = canvas.within(box)
    torso = thorax.torso(p)
    canvas.paint(canvas.coverage(torso), HU["fat"], body, box)
    for side in (LEFT, RIGHT) if thorax.breast else ():
        centre = np.array([side * 0.46 * width, depth - 20, thorax.heart_centre[2] + 20])
        axes = np.array([1.9, 1.25, 1.8]) * thorax.breast
        part = canvas.region(centre - axes, centre + axes)
        canvas.paint(canvas.coverage(ellipsoid(canvas.within(part), centre, axes)), HU["fat"], body, part)
    canvas.paint(canvas.coverage(torso + thorax.fat), HU["muscle"], body, box)


def _draw_abdomen(canvas: Canvas, thorax: Thorax, rng: np.random.Generator) -> None:
    """The fat inside the rib cage, and below the diaphragm liver, spleen and stomach, some with a gas bubble."""
    (a, b), body = thorax.cavity, MASK_LABELS["body"]
    bottom, top = canvas.height
    box = canvas.region((-a, 2 - b, bottom), (a, 2 + b, top))
    p = canvas.within(box)
    canvas.paint(canvas.coverage(thorax.rib_cage(p)), HU["mediastinal_fat"], body, box)
    dome, left_dome = thorax.dome[RIGHT], thorax.dome[LEFT]
    box = canvas.region((-a, 2 - b, bottom), (a, 2 + b, dome))
    p = canvas.within(box)
    cage, right = thorax.rib_cage(p), thorax.diaphragm(p, RIGHT)
    below = smooth_max(cage + 2, -np.minimum(thorax.diaphragm(p, LEFT), right), 4)
    liver = ellipsoid(p, (0.42 * a, 0.05 * b, dome - 62), (0.72 * a, 0.98 * b, 80))
    lobe = ellipsoid(p, (-0.1 * a, 0.42 * b, dome - 45), (0.6 * a, 0.48 * b, 45), rotation((0, -14, 0)))
    liver = smooth_max(-smooth_max(-liver, -lobe, 15), cage + 3, 6)
    liver = smooth_max(liver, np.where(p[0] > -0.1 * a, -right - 2, -2), 4)
    stomach_centre = np.array([-0.46 * a, 0.2 * b, left_dome - rng.uniform(42, 52)])
    stomach = smooth_max(ellipsoid(p, stomach_centre, (38, 0.42 * b, 36)), cage + 6, 6)
    spleen = smooth_max(ellipsoid(p, (-0.66 * a, -0.42 * b, left_dome - 62), (30, 36, 48)), cage + 4, 6)
    canvas.paint(canvas.coverage(below), HU["abdomen"], body, box)
    canvas.paint(canvas.coverage(spleen), HU["spleen"], body, box)
    canvas.paint(canvas.coverage(stomach), HU["stomach"], body, box)
    canvas.paint(canvas.coverage(liver), HU["liver"] + rng.uniform(-8, 8), MASK_LABELS["liver"], box)
    if rng.uniform() < 0.4:
        box, bubble = canvas.ball(stomach_centre + np.array([0, 8, -6]), rng.uniform(10, 17))
        canvas.paint(bubble, HU["air"], body, box)


def _draw_lungs(canvas: Canvas, thorax: Thorax) -> dict[int, tuple[Box, np.ndarray]]:
    """Both lungs, each in a thin lining of pleura and diaphragm; returns the box and coverage of each."""
    lungs = {}
    for side in (LEFT, RIGHT):
        box = canvas.region(*thorax.lung_block(side))
        p = canvas.within(box)
        distance = thorax.lung(p, side, thorax.rib_cage(p))
        canvas.paint(canvas.coverage(distance - 3), HU["muscle"], MASK_LABELS["body"], box)
        lungs[side] = box, canvas.coverage(distance)
        canvas.paint(lungs[side][1], thorax.lung_hu - thorax.lung_gradient * p[1], LUNG_LABEL[side], box)
    return lungs


def _draw_heart_and_vessels(canvas: Canvas, thorax: Thorax) -> None:
    """Heart, aorta, pulmonary trunk and arteries, superior vena cava and the vessels above the arch."""
    for start, end, radius in thorax.great_vessels():
        box, tube = canvas.tube(start, end, radius)
        canvas.paint(tube, HU["blood"], MASK_LABELS["great_vessels"], box)
    box = canvas.box([thorax.heart_centre], float(max(thorax.heart_axes)))
    canvas.paint(canvas.coverage(thorax.heart(canvas.within(box))), HU["heart"], MASK_LABELS["heart"], box)


def _draw_bones(canvas: Canvas, thorax: Thorax) -> None:
    """Vertebrae with discs, canal and arches; ribs that slope down to the front; sternum, scapulae, clavicles."""
    (a, b), spine, ribs = thorax.cavity, MASK_LABELS["spine"], MASK_LABELS["ribs"]
    bottom, top = canvas.height
    box = canvas.region((-36, -b - 32, bottom), (36, -b + 62, top))
    x, y, z = canvas.within(box)
    yc = thorax.spine_y(z)
    disc = thorax.within_vertebra(z)
    body = np.sqrt(np.square(x / 1.25) + np.square(y - yc)) - 14
    bone = np.maximum(body, disc - thorax.vertebra_height / 2 + 2.5)
    arch = np.sqrt(np.square(x) + np.square(y - yc + 21)) - 14
    spinous = np.maximum(np.abs(x) - 4.5, np.abs(y - yc + 38) - 12)
    transverse = np.maximum(np.abs(x) - 33, np.sqrt(np.square(y - yc + 22) + np.square(disc - 2)) - 6)
    processes = np.minimum(np.maximum(spinous, disc - 9.5), np.maximum(transverse, disc - 8))
    processes = np.maximum(processes, thorax.torso((x, y, z)) + thorax.fat + 1)
    canvas.paint(canvas.coverage(body), HU["disc"], spine, box)
    canvas.paint(canvas.coverage(np.minimum(processes, np.maximum(arch, disc - 10))), 0.75 * HU["cortex"], spine, box)
    canvas.paint(canvas.coverage(bone), HU["cortex"], spine, box)
    canvas.paint(canvas.coverage(bone + 2.5), HU["vertebra"], spine, box)
    canvas.paint(canvas.coverage(np.sqrt(np.square(x) + np.square(y - yc + 22)) - 8), HU["canal"], spine, box)

    box = canvas.region((-a - 12, -b - 10, bottom), (a + 12, b + 14, thorax.apex))
    x, y, z = canvas.within(box)
    across = thorax.across_rib(y, z)
    rib = np.sqrt(np.square(thorax.rib_cage((x, y, z)) - 6) + np.square(np.maximum(across - 2, 0))) - 4.2
    rib = np.maximum(rib, 18 - np.abs(x))
    front = np.clip((y - 0.62 * b) / 12, 0, 1)  # cartilage replaces bone towards the sternum
    canvas.paint(canvas.coverage(rib), HU["cortex"] - (HU["cortex"] - HU["cartilage"]) * front, ribs, box)

    zc, bottom = float(thorax.carina[2]), float(thorax.heart_centre[2]) - 5
    box = canvas.box([(0, b, bottom), (0, b, zc + 50)], 30)
    x, y, z = canvas.within(box)
    sternum = np.maximum(np.abs(thorax.rib_cage((x, y, z)) - 6) - 5, np.abs(x) - 17 - 6 * np.clip((z - zc) / 25, 0, 1))
    sternum = np.maximum(sternum, np.maximum(bottom - z, z - zc - 50))
    canvas.paint(canvas.coverage(np.maximum(sternum, -y)), 0.55 * HU["cortex"], ribs, box)
    for side in (LEFT, RIGHT):
        centre, axes = np.array([side * 0.7 * a, -0.78 * b - 6, zc + 28]), (34, 5, 56)
        box = canvas.box([centre], max(axes))
        scapula = ellipsoid(canvas.within(box), centre, axes, rotation((-12, side * 8, side * 32)))
        canvas.paint(canvas.coverage(scapula), 0.8 * HU["cortex"], ribs, box)
        box, clavicle = canvas.tube((side * 20, 0.75 * b, zc + 58), (side * 0.85 * a, 0.2 * b, zc + 92), 6)
        inside = thorax.torso(canvas.within(box)) + thorax.fat
        canvas.paint(np.minimum(clavicle, canvas.coverage(inside)), HU["cortex"], ribs, box)


def _draw_airways(canvas: Canvas, thorax: Thorax) -> dict[int, np.ndarray]:
    """Trachea and main bronchi; returns where they enter each lung (the hila)."""
    carina = thorax.carina
    hila = {side: carina + np.array([side * 34, 2, -28 if side == RIGHT else -24]) for side in (LEFT, RIGHT)}
    tubes = [(np.array([0, carina[1] + 4, canvas.height[1]]), carina, 8.5)]
    tubes += [(carina, hilum, 6.0) for hilum in hila.values()]
    for start, end, radius in tubes:
        box, tube = canvas.tube(start, end, radius)
        canvas.paint(tube, HU["airway"], MASK_LABELS["airways"], box)
    return hila


def _draw_lung_vessels(
    canvas: Canvas,
    thorax: Thorax,
    rng: np.random.Generator,
    lungs: dict[int, tuple[Box, np.ndarray]],
    hila: dict[int, np.ndarray],
) -> None:
    """In each lung a tree from the hilum over lobar branches to random points, thinner at every branching."""
    tree = np.zeros_like(canvas.image)

    def branch(start: np.ndarray, end: np.ndarray, radius: float) -> None:
        box, tube = canvas.tube(start, end, radius)
        np.maximum(tree[box], tube, out=tree[box])

    for side, (lung_box, lung) in lungs.items():
        ends = thorax.random_points_in_lung(rng, side, count=30, margin=4)
        lobes = hila[side] + 0.42 * (ends[:6] - hila[side])
        for lobe in lobes:
            branch(hila[side], lobe, 4.2)
        for end in ends:
            lobe = lobes[np.argmin(np.linalg.norm(lobes - end, axis=1))]
            bend = 0.5 * (lobe + end) + rng.normal(0, 5, 3)
            branch(lobe, bend, 2.6)
            branch(bend, end, 1.5)
        canvas.paint(tree[lung_box] * lung, HU["blood"], MASK_LABELS["lung_vessels"], lung_box)


def _draw_nodules(
    canvas: Canvas, thorax: Thorax, rng: np.random.Generator
) -> list[tuple[np.ndarray, dict[str, object]]]:
    """Up to three round nodules of 9 to 28 mm inside the lungs, small ones more often: centres and facts."""
    nodules = []
    for _ in range(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))):
        side, radius = int(rng.choice((LEFT, RIGHT))), 4.5 + 9.5 * rng.uniform() ** 2
        centre = thorax.random_points_in_lung(rng, side, count=1, margin=radius)[0]
        box, ball = canvas.ball(centre, radius)
        canvas.paint(ball, rng.uniform(-20, 60), MASK_LABELS["nodules"], box)
        facts = {
            "centre_mm": [round(float(v), 1) for v in thorax.turn @ centre + thorax.shift],
            "diameter_mm": round(2 * radius, 1),
            "side": "left" if side == LEFT else "right",
        }
        nodules.append((centre, facts))
    return nodules
