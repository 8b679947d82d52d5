"""Pictures without a face to judge a detector on: each once, shrunk to 960 pixels.

    python bench/face_free.py FOLDER OUT

FOLDER holds pictures, in folders of it too; OUT gets them as 000.jpg and so on, by path. Of
pictures that look alike at 8 × 8 grey pixels, as one in several resolutions does, the first is
kept. Whether they are free of faces is for you to see.
"""

import argparse
from pathlib import Path

import cv2

from vafer.pictures import PICTURE_SUFFIXES, read_picture

SIDE = 960  # pixels
COARSE, LEVELS = 8, 24  # side of what is compared, and grey levels that count as one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    paths = sorted(
        path
        for path in arguments.folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_symlink()
    )
    if not paths:
        raise SystemExit(f"{arguments.folder} holds no pictures: expected a folder of some")
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} is there already: name another folder")
    arguments.out.mkdir(parents=True)
    seen = set[bytes]()
    for path in paths:
        picture = read_picture(path)
        if picture is None:
            print(f"{path} cannot be read and is left out")
            continue
        scale = SIDE / max(picture.shape[:2])
        if scale < 1:
            how = cv2.INTER_AREA
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        coarse = cv2.resize(grey, (COARSE, COARSE), interpolation=cv2.INTER_AREA) // LEVELS
        if coarse.tobytes() not in seen:
            cv2.imwrite(str(arguments.out / f"{len(seen):03}.jpg"), picture[..., ::-1])
            seen.add(coarse.tobytes())
    print(f"{len(seen)} pictures of {len(paths)} files")


if __name__ == "__main__":
    main()
