"""The ablation on real faces: which critic, margin and grouping help, at the same budget for each.

    python bench/ablation.py --root FACES --detector DETECTOR.onnx --out runs/ablation [--full]

FACES holds fer2013.parquet and lfw_expressions.parquet. Scores are on FER2013's test split, and on
a fold of LFW whose identities are not trained on; seed s holds out fold s. Without --full, one
factor is varied at a time, with three seeds at 64 pixels; with it, critics x margins x groupings,
five seeds at 112 pixels. Each run has a folder under --out; what is finished there is not run
again, so an interrupted study goes on. The tables, in Markdown, come at the end and with --tables.
"""

import argparse
import json
from pathlib import Path

from study import cell, folder_name, run_side_by_side

BASE = "ablation/faces.yaml"
SCORES = ("rmse", "sagr", "pcc", "ccc")
RIVALS = {
    "none": ["critic=none"],
    "fisher": ["critic=fisher"],
    "sphere": ["critic=sphere"],
    "gram": ["critic=gram"],
}
MARGINS = {m: [f"margin.kind={m}"] for m in ("adaptive", "constant", "linear")}
GROUPINGS = {
    "otsu": ["grouping.method=otsu"],
    **{f"k-means {k}": ["grouping.method=kmeans", f"grouping.k={k}"] for k in (2, 3, 5)},
}
AS_WRITTEN = {  # the adversarial step at the full rate, as the paper has it, and two remedies
    **{f"{kind} as written": [f"critic={kind}", "game.adv_weight=1"]
       for kind in ("caf", "fisher", "sphere", "gram")},
    "caf as written, sigmoid": ["game.adv_weight=1", "game.sigmoid=true"],
    "caf as written, distance": ["game.adv_weight=1", "game.adv_loss=distance"],
}  # fmt: skip
REDUCED = {
    **RIVALS,
    "caf": [],
    **{f"caf, {m} margin": MARGINS[m] for m in ("constant", "linear")},
    **{f"caf, {g}": GROUPINGS[g] for g in ("k-means 2", "k-means 3", "k-means 5")},
    **AS_WRITTEN,
}
FULL = {
    **RIVALS,
    **{
        f"caf, {m} margin, {g}": [*MARGINS[m], *GROUPINGS[g]] for m in MARGINS for g in GROUPINGS
    },
    **AS_WRITTEN,
}  # fmt: skip
AT_112 = ["crop.size=112", "data.border=8", "batch_size=256", "iterations=6000"]


def run_one(changes: list[str], out: Path) -> None:
    """One run, with its words in out.log."""
    from train.config import read_config
    from train.run import train

    out.mkdir(parents=True, exist_ok=True)
    with (out / "out.log").open("a", buffering=1) as log:
        train(
            read_config(BASE, changes),
            out,
            resume=True,
            on_notice=lambda text: print(text, file=log),
        )


def tables(out: Path, rows: list[str]) -> str:
    """Mean ± sd over the seeds that are there, a table a held-out set, in Markdown."""
    lines = []
    for name in ("fer_test", "lfw_test"):
        lines += [f"\n`{name}`\n", "| row | seeds | " + " | ".join(
            f"{s.upper()} {d}" for s in SCORES for d in ("V", "A")) + " |",
            "|---|---|" + "---|" * 8]  # fmt: skip
        for row in rows:
            finished = sorted((out / folder_name(row)).glob("seed-*/scores.json"))
            found = [json.loads(path.read_text())["sets"][name] for path in finished]
            if found:
                cells = [
                    cell([f[d][s] for f in found]) for s in SCORES for d in ("valence", "arousal")
                ]
                lines.append(f"| {row} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, help="how many; 3, or 5 with --full")
    parser.add_argument("--jobs", type=int, help="runs at once; 1 on a GPU, else one a core")
    parser.add_argument("--set", action="append", default=[], help="for every row")
    parser.add_argument("--tables", action="store_true", help="print what is there, run nothing")
    arguments = parser.parse_args()
    rows = FULL if arguments.full else REDUCED
    if not arguments.tables:
        if not (arguments.root and arguments.detector):
            parser.error("--root and --detector are needed to run")
        run_all(rows, arguments)
    print(tables(arguments.out, list(rows)))


def run_all(rows: dict[str, list[str]], arguments: argparse.Namespace) -> None:
    """All rows with the first seed, then all with the second: what is there early is comparable."""
    from train.config import read_config
    from train.sets import load_split

    common = [
        f"data.root={arguments.root}",
        f"data.detector={arguments.detector}",
        f"data.cache={arguments.out / 'crops'}",
        *(AT_112 if arguments.full else []),
        *arguments.set,
    ]
    load_split(read_config(BASE, common), lambda *done: print("crops", *done, flush=True))
    tasks = {}
    for seed in range(arguments.seeds or (5 if arguments.full else 3)):
        for row, changes in rows.items():
            out = arguments.out / folder_name(row) / f"seed-{seed}"
            of_seed = [*common, *changes, f"seeds=[{seed}]", f"data.fold={seed % 5}"]
            tasks[f"{row}, seed {seed}"] = (run_one, (of_seed, out))  # which knows a finished one
    run_side_by_side(tasks, arguments.jobs)


if __name__ == "__main__":
    main()
