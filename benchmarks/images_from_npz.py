"""PNG files and a labels.csv from a NumPy archive of image stacks, as MedMNIST publishes them.

    python benchmarks/images_from_npz.py pneumoniamnist.npz OUT [--classes normal pneumonia] [--limit N]

Takes every pair of arrays ``<split>_images`` (N, H, W[, 3]) of bytes and ``<split>_labels`` (N, 1). The splits of the
archive (train, val, test) go into the list's column ``split``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medical_diffusion.pictures import write_png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--classes", nargs="+", help="names of the labels 0, 1, ...")
    parser.add_argument("--limit", type=int, help="images of each split at most")
    args = parser.parse_args()
    rows = []
    with np.load(args.archive, allow_pickle=False) as arrays:
        for split in [name.removesuffix("_images") for name in arrays.files if name.endswith("_images")]:
            images, labels = arrays[f"{split}_images"][: args.limit], arrays[f"{split}_labels"].reshape(-1)
            (args.output / split).mkdir(parents=True, exist_ok=True)
            for n, image in enumerate(tqdm(images, desc=split, unit="image")):
                path = write_png(args.output / split / f"{n:05d}.png", image)
                label = args.classes[labels[n]] if args.classes else int(labels[n])
                rows.append((path.relative_to(args.output).as_posix(), label, split))
    with open(args.output / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label", "split"), *rows])
    print(f"{len(rows)} images in {args.output}")


if __name__ == "__main__":
    main()
