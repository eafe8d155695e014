"""How many pictures a second tell their size: `python benchmarks/bench_headers.py [FOLDER]`; without one, on files made here."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sdtune.data.headers import header
from sdtune.data.images import SUFFIXES

FILES, SIZE = 2000, (1024, 768)


def make(folder: Path) -> list[Path]:
    """Pictures as cameras and the web have them, each kind once in bytes and many times as files."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
    im, kinds = Image.fromarray(pixels).resize(SIZE), list[bytes]()
    profile = bytes(3000)
    for name, options in (
        ("a.jpg", {"quality": 85}), ("b.jpg", {"exif": exif, "icc_profile": profile}), ("c.jpg", {"progressive": True}),
        ("d.png", {}), ("e.png", {"exif": exif}), ("f.webp", {}), ("g.webp", {"exif": exif}),
    ):  # fmt: skip
        im.save(folder / name, **options)
        kinds.append((folder / name).read_bytes())
    paths, suffixes = [], ("jpg",) * 3 + ("png",) * 2 + ("webp",) * 2
    for i in range(FILES):
        paths.append(folder / f"{i:06d}.{suffixes[i % len(suffixes)]}")
        paths[-1].write_bytes(kinds[i % len(kinds)])
    return paths


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        paths = [p for p in Path(sys.argv[1]).rglob("*") if p.suffix in SUFFIXES] if sys.argv[1:] else make(Path(made))
        best = float("inf")
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            found = sum(header(path) is not None for path in paths)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best = min(best, cpu)
        print(f"{found} of {len(paths)} pictures: {len(paths) / best:,.0f} a second of one core's time")
        print(f"the last of three rounds took {wall:.2f} s, {cpu:.2f} s of them at work")


if __name__ == "__main__":
    main()
