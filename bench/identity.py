"""Does CAF rely on identity less than plain regression does? On drawn faces, where it is known.

    python bench/identity.py --out runs/identity [--seeds 5]

Each identity that is trained on has a look (skin tone, width of the face) that goes with the mean
of its labels, at a correlation of 0.9; in the test set it does not. So the look is a short cut in
training and misleads in the test. `as in training` scores new identities whose look goes with the
labels; `broken` those whose look does not; the gap is what the short cut was worth. Reliance is the
partial correlation of the prediction with the look, given the label, on `broken`: 0 for a network
that ignores identity. Rows are saved as they finish.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from study import cell, folder_name, run_side_by_side

BASE = "ablation/drawn.yaml"
CONFOUNDING = 0.9
SUBJECTS, EACH = 150, 24  # to train on; a third as many identities in each test set
ROWS = {
    "none": ["critic=none"],
    "fisher": ["critic=fisher"],
    "sphere": ["critic=sphere"],
    "gram": ["critic=gram"],
    "caf": [],
    **{f"caf, k-means {k}": ["grouping.method=kmeans", f"grouping.k={k}"] for k in (2, 3, 5)},
    "caf, distance": ["game.adv_loss=distance"],
    "caf as written": ["game.adv_weight=1"],
    "caf as written, distance": ["game.adv_weight=1", "game.adv_loss=distance"],
}


def run_one(changes: list[str], seed: int, out: Path) -> None:
    """One run, and what its model does on both test sets."""
    from train.config import read_config
    from train.data import Split
    from train.run import train
    from train.sets import drawn_faces
    from train.synthetic import draw_faces
    from vafer.files import write_json
    from vafer.metrics import scores
    from vafer.model import load_model

    config = read_config(BASE, [*changes, f"seeds=[{seed}]"])
    size, border = config.crop.size + 2 * config.data.border, config.data.border
    parts = {
        "train": (SUBJECTS, CONFOUNDING),
        "as in training": (SUBJECTS // 3, CONFOUNDING),
        "broken": (SUBJECTS // 3, 0.0),
    }
    drawn = {
        name: draw_faces(n, EACH, size=size, seed=3 * seed + i, confounding=c, prefix=name)
        for i, (name, (n, c)) in enumerate(parts.items())
    }
    sets = {n: drawn_faces(n, d.crops, d.labels, d.subjects) for n, d in drawn.items()}
    split = Split((sets["train"],), (sets["broken"],), {"labels": "drawn"})
    train(config, out, split=split, resume=True)
    reliance = out / "reliance.json"
    finished_s = (out / "scores.json").stat().st_mtime
    if reliance.is_file() and reliance.stat().st_mtime >= finished_s:
        return
    model = load_model(out / "model.safetensors")
    found: dict[str, object] = {}
    for name in ("as in training", "broken"):
        faces = sets[name]
        middle = faces.crops[..., border:-border, border:-border]
        predicted = model.predict(torch_from(middle)).numpy()
        found[name] = scores(faces.labels, predicted)
    looks = drawn["broken"].looks
    found["reliance"] = {
        dimension: partial_correlation(predicted[:, i], looks[:, i], faces.labels)
        for i, dimension in enumerate(("valence", "arousal"))
    }
    write_json(reliance, found)


def torch_from(crops: np.ndarray):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(np.ascontiguousarray(crops))


def partial_correlation(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float | None:
    """Correlation of a and b (N,) after both are regressed on `given` (N, k); None if constant."""
    if not np.ptp(a):
        return None
    known = np.column_stack([given, np.ones(len(given))])
    rest = [x - known @ np.linalg.lstsq(known, x, rcond=None)[0] for x in (a, b)]
    return float(np.corrcoef(*rest)[0, 1])


def table(out: Path) -> str:
    """Mean ± sd over the seeds that are there, in Markdown."""
    lines = [
        "| row | seeds | CCC V, as in training | broken | CCC A, as in training | broken "
        "| reliance V | A |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        finished = sorted((out / folder_name(row)).glob("seed-*/reliance.json"))
        found = [json.loads(path.read_text()) for path in finished]
        if found:
            cells = [
                cell([f[part][dimension]["ccc"] for f in found])
                for dimension in ("valence", "arousal")
                for part in ("as in training", "broken")
            ]
            cells += [cell([f["reliance"][d] for f in found]) for d in ("valence", "arousal")]
            lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", type=int, help="runs at once; 1 on a GPU, else one a core")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    arguments = parser.parse_args()
    tasks = {}
    for seed in range(arguments.seeds):
        for row in arguments.rows:
            out = arguments.out / folder_name(row) / f"seed-{seed}"
            tasks[f"{row}, seed {seed}"] = (run_one, (ROWS[row], seed, out))
    if not arguments.table:
        run_side_by_side(tasks, arguments.jobs)
    print(table(arguments.out))


if __name__ == "__main__":
    main()
