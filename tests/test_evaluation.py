"""`vafer evaluate` as a user runs it, on small copies of each dataset, against plain NumPy."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from tests import trees
from vafer import evaluation as module
from vafer.cli import app
from vafer.errors import ModelError
from vafer.evaluation import evaluate
from vafer.labelled import FaceFinder
from vafer.lock import own_folder
from vafer.model import Model, load_model
from vafer.options import SplitOptions
from vafer.predicting import EvaluationProgress, Predictor
from vafer.store import DEFAULT_MODEL

runner = CliRunner()
SMALL = (
    *("crop.size=64", "iterations=50", "batch_size=8", "seeds=[0]", "data.border=4"),
    *("optimiser.lr=3e-3", "critic=none", "model.dropout=0", "log_every=25"),
)  # fmt: skip
DATASETS: dict[str, tuple[str, str, Callable[..., trees.Labels]]] = {  # config, name, tree
    "afew-va": ("afew_va", "afew-va", trees.afew_va),
    "aff-wild": ("aff_wild", "aff-wild", trees.aff_wild),
    "aff-wild2": ("affectnet", "aff-wild2", trees.aff_wild2),
    "affectnet csv": ("affectnet", "affectnet", trees.affectnet_csv),
    "affectnet npy": ("affectnet", "affectnet", trees.affectnet_npy),
}


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout, " ".join(result.stderr.split())


def scores_in(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"scores.json holds {constant}")

    return json.loads((folder / "scores.json").read_text(), parse_constant=refuse)


def plain_scores(label: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The four scores of two series (N,), each as the paper writes it."""
    y, p = np.asarray(label, float), np.asarray(predicted, float)
    found = {"rmse": np.mean((y - p) ** 2) ** 0.5, "sagr": np.mean(np.sign(y) == np.sign(p))}
    if len(y) > 1 and np.ptp(y) and np.ptp(p):
        covariance = np.mean(y * p) - np.mean(y) * np.mean(p)
        found["pcc"] = covariance / (y.std() * p.std())
        found["ccc"] = 2 * covariance / (y.var() + p.var() + (y.mean() - p.mean()) ** 2)
    return found


def check_scores(found: dict[str, Any], frames: list[tuple[tuple, tuple]]) -> None:
    """Scores of one group against pairs of (valence, arousal), labels and predictions."""
    for i, dimension in enumerate(("valence", "arousal")):
        expected = plain_scores([f[0][i] for f in frames], [f[1][i] for f in frames])
        for name in ("rmse", "sagr", "pcc", "ccc"):
            value = found[dimension][name]
            if name in expected:
                assert value == pytest.approx(expected[name], abs=1e-6), (dimension, name)
            else:
                assert value is None


@pytest.fixture(scope="module", params=DATASETS, ids=lambda name: name.replace(" ", "-"))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, yunet: Path
) -> tuple[str, Path, Path, trees.Labels]:
    """A dataset's name, its root, a run of 50 iterations on it, and its labels."""
    config, name, build = DATASETS[request.param]
    folder = tmp_path_factory.mktemp("trained")
    labels = build(folder / "data")
    changes = [*SMALL, f"data.dataset={name}", f"data.root={folder / 'data'}", "data.n_folds=3",
               f"data.cache={folder / 'crops'}", f"data.detector={yunet}"]  # fmt: skip
    options = [word for change in changes for word in ("--set", change)]
    run("train", "--config", config, *options, "--out", folder / "run", "--quiet")
    return name, folder / "data", folder / "run", labels


def held_out(name: str, labels: trees.Labels, out: Path) -> list[tuple[str, int]]:
    """The keys of the labels that are to be scored, by what the tree made of them."""
    parts = {} if name[:4] == "affe" else dict.fromkeys(("video4", "video5"), "validation")
    if name in ("afew-va", "aff-wild"):
        parts = json.loads((out / "split.json").read_text())["parts"]

    def is_held_out(video: str) -> bool:
        if name == "afew-va":  # clips are of three actors in turn
            return parts[f"Actor {(int(video) - 1) % 3 + 1}"] == 0
        return parts.get(video) == "validation" or "validation" in video or "val_set" in video

    return sorted(key for key in labels if is_held_out(key[0]))


def test_a_model_is_trained_and_scored_on_each_layout(
    trained: tuple[str, Path, Path, trees.Labels], yunet: Path, tmp_path: Path
) -> None:
    name, root, model, labels = trained
    part = ("--fold", 0, "--n-folds", 3) if name == "afew-va" else ()
    out = tmp_path / "scores"
    shown, warned = run("evaluate", "--dataset", name, "--root", root, "--model", model, *part,
                        "--detector", yunet, "--out", out)  # fmt: skip
    assert "WARNING" not in warned
    scores, frames = scores_in(out), pl.read_parquet(out / "frames.parquet")
    assert frames.columns == ["video", "frame_index", "time_s", "valence_label", "arousal_label",
                              "valence", "arousal"]  # fmt: skip
    pairs: dict[str, list] = {}
    for row in frames.iter_rows(named=True):
        label = row["valence_label"], row["arousal_label"]
        assert label == pytest.approx(labels[row["video"], row["frame_index"]], abs=1e-9)
        if row["valence"] is not None:
            pair = label, (row["valence"], row["arousal"])
            pairs.setdefault(row["video"], []).append(pair)
    assert sorted(frames.select("video", "frame_index").rows()) == held_out(name, labels, out)
    n_pairs = sum(len(p) for p in pairs.values())
    check_scores(scores["overall"], [pair for video in pairs.values() for pair in video])
    assert scores["overall"]["n_labelled"] == len(frames)
    assert scores["overall"]["n_scored"] == scores["overall"]["n_predicted"] == n_pairs
    for entry in scores["per_video"]:
        check_scores(entry, pairs[entry["video"]])
    assert {e["video"] for e in scores["per_video"]} == (set() if name == "affectnet" else {*pairs})
    written = {p.name for p in out.iterdir()}
    assert {"predictions.png", "error_plane.png", "features.png"} <= written
    assert ("traces-01.png" in written) == (name != "affectnet")
    if name in ("afew-va", "aff-wild"):  # the others come in official sets
        assert (out / "split.json").read_text() == (model / "split.json").read_text()
    assert "parts" not in written
    # What training says of the held-out part is what evaluation says: the same faces, in the same
    # crops but for their compression.
    (of_run,) = scores_in(model)["sets"].values()
    assert of_run["n_faces"] == n_pairs
    for dimension in ("valence", "arousal"):
        assert scores["overall"][dimension]["rmse"] == pytest.approx(
            of_run[dimension]["rmse"], abs=0.03
        )
        assert f"{scores['overall'][dimension]['rmse']:.3f}" in shown


def test_predictions_are_those_of_the_faces_that_the_labels_mean(
    untrained: Path, tmp_path: Path
) -> None:
    """By hand for one frame of a video: decode, align by the dataset's landmarks, predict."""
    from vafer.crops import cut, warp

    trees.aff_wild(tmp_path / "data", n_videos=2)
    found = evaluate(
        "aff-wild", root=tmp_path / "data", model=untrained, out=tmp_path / "out",
        split=SplitOptions(split="all"),
    )  # fmt: skip
    labels = list(trees._curve(1, 25))
    shot = trees.shoot(labels[7], size=(320, 240), person=1, frame=7)
    five = np.stack(
        [shot.points[36:42].mean(0), shot.points[42:48].mean(0), *shot.points[[30, 48, 54]]]
    )
    model = load_model(untrained)
    matrix = model.card.crop.matrices(np.zeros((1, 4)), five[None])[0]
    expected = model.predict(warp([cut(shot.picture, matrix, 64)], 64))[0]
    row = found.frames.filter(video="106", frame_index=7).row(0, named=True)
    assert row["time_s"] == pytest.approx(7 / 30, abs=1e-3)
    # The network is untrained and steep: the video's compression moves its values a little.
    assert (row["valence"], row["arousal"]) == pytest.approx(expected.tolist(), abs=0.1)
    others = found.frames.filter(pl.col("video") == "105")["valence"]
    assert others.n_unique() == len(others)


@pytest.fixture
def predicted(tmp_path: Path) -> tuple[Path, trees.Labels, dict[tuple[str, int], tuple]]:
    """AFEW-VA, its labels, and predictions with gaps in a table of the least columns."""
    labels = trees.afew_va(tmp_path / "data", n_actors=5, n_frames=9, with_pictures=False)
    rng = np.random.default_rng(0)
    values = {key: tuple(rng.uniform(-1, 1, 2).astype(np.float32).tolist()) for key in labels}
    for frame in (0, 4, 5):
        del values["002", frame]
    values["003", 9] = (0.5, 0.5)  # a frame without a label
    rng.shuffle(keys := list(values))  # they never meet by order
    pl.DataFrame(
        [(f"01/{video}", frame, *values[video, frame]) for video, frame in keys],
        schema=["video", "frame_index", "valence", "arousal"],
        orient="row",
    ).write_parquet(tmp_path / "results.parquet")
    return tmp_path, labels, values


@pytest.mark.parametrize("missing", ["drop", "carry", "neutral"])
def test_predictions_are_scored_and_what_is_missing_is_counted(
    missing: str, predicted: tuple[Path, trees.Labels, dict]
) -> None:
    folder, labels, values = predicted
    shown, _ = run("evaluate", "--dataset", "afew-va", "--root", folder / "data",
                   "--predictions", folder / "results.parquet", "--missing", missing,
                   "--out", folder / "out")  # fmt: skip
    scores = scores_in(folder / "out")
    pairs, last = [], None
    for video, frame in sorted(labels):
        last = values.get((video, frame), None if frame == 0 else last)
        value = {"drop": values.get((video, frame)), "carry": last,
                 "neutral": values.get((video, frame), (0.0, 0.0))}[missing]  # fmt: skip
        if value is not None:
            pairs.append((labels[video, frame], value))
    assert len(pairs) == 90 - {"drop": 3, "carry": 1, "neutral": 0}[missing]
    check_scores(scores["overall"], pairs)
    overall = scores["overall"]
    assert (overall["n_labelled"], overall["n_scored"], overall["n_missing"]) == (90, len(pairs), 3)
    assert overall["missing"] == missing
    assert "3 of them without a prediction" in shown
    for entry in scores["per_subject"]:
        assert entry["subject"] in {f"Actor {i}" for i in range(1, 6)}
        assert entry["n_labelled"] == 18
    low, high = overall["valence"]["ccc_ci"]
    assert low <= overall["valence"]["ccc"] <= high
    frames = pl.read_parquet(folder / "out" / "frames.parquet")
    assert frames["valence"].null_count() == 3  # whatever they are scored with
    assert scores["published"]["AlexNet"]["valence"]["ccc"] == 0.58


def test_an_assignment_is_written_and_read_back(
    predicted: tuple[Path, trees.Labels, dict],
) -> None:
    folder, *_ = predicted
    common = ("evaluate", "--dataset", "afew-va", "--root", folder / "data", "--predictions",
              folder / "results.parquet")  # fmt: skip
    run(*common, "--fold", 2, "--out", folder / "a")
    run(*common, "--fold", 2, "--out", folder / "b", "--assignment", folder / "a" / "split.json")
    assert scores_in(folder / "a")["overall"] == scores_in(folder / "b")["overall"]
    assert scores_in(folder / "a")["split"]["n_subjects"] == 1
    leaky = json.loads((folder / "a" / "split.json").read_text())
    leaky |= {"by": "video", "parts": {f"{i:03}": i % 2 for i in range(1, 11)}}
    (folder / "leaky.json").write_text(json.dumps(leaky))
    _, error = run(*common, "--fold", 0, "--assignment", folder / "leaky.json", code=2)
    assert "Actor 3 and 2 more; expected each in one" in error


def test_a_model_trained_on_who_is_scored_is_reported(
    trained: tuple[str, Path, Path, trees.Labels], yunet: Path, tmp_path: Path
) -> None:
    name, root, model, _ = trained
    part = ("--n-folds", 3) if name == "afew-va" else ("--split", "all")
    _, warned = run("evaluate", "--dataset", name, "--root", root, "--model", model, *part,
                    "--detector", yunet, "--out", tmp_path, "--quiet")  # fmt: skip
    assert "WARNING: run was trained on" in warned
    (text,) = scores_in(tmp_path)["provenance"]["trained_on"]
    assert text in warned
    if name == "afew-va":
        assert "2 of the 3 subjects scored: Actor" in text


def test_each_fold_is_scored_by_the_model_that_held_it_out(tmp_path: Path, yunet: Path) -> None:
    trees.afew_va(tmp_path / "data", n_actors=2, clips_per_actor=3)
    changes = [*SMALL, f"data.root={tmp_path / 'data'}", "data.n_folds=2", "iterations=5",
               f"data.cache={tmp_path / 'crops'}"]  # fmt: skip
    options = [word for change in changes for word in ("--set", change)]
    for fold in (0, 1):
        run("train", "--config", "afew_va", *options, "--set", f"data.fold={fold}",
            "--out", tmp_path / "runs" / f"fold-{fold}", "--quiet")  # fmt: skip
    common = ("evaluate", "--dataset", "afew-va", "--root", tmp_path / "data", "--n-folds", 2)
    _, warned = run(*common, "--model", tmp_path / "runs", "--out", tmp_path / "pooled")
    assert "WARNING" not in warned
    assert len(scores_in(tmp_path / "pooled")["provenance"]["inputs"]["models"]) == 2
    pooled = pl.read_parquet(tmp_path / "pooled" / "frames.parquet")
    assert pooled["valence"].null_count() == 0
    for fold in (0, 1):
        out = tmp_path / f"alone-{fold}"
        run(*common, "--model", tmp_path / "runs" / f"fold-{fold}", "--fold", fold, "--out", out)
        alone = pl.read_parquet(out / "frames.parquet")
        joined = alone.join(pooled, on=["video", "frame_index"])
        assert len(joined) == len(alone) == 12
        assert (joined["valence"] - joined["valence_right"]).abs().max() < 1e-6
    (tmp_path / "runs" / "fold-1" / "model.safetensors").unlink()
    run(*common, "--model", tmp_path / "runs", "--out", tmp_path / "half", "--fold", 0)
    (tmp_path / "runs" / "again").mkdir()
    whole = (tmp_path / "runs" / "fold-0" / "model.safetensors").read_bytes()
    (tmp_path / "runs" / "again" / "model.safetensors").write_bytes(whole)
    _, error = run(*common, "--model", tmp_path / "runs", "--out", tmp_path / "none", code=2)
    assert "both held out fold 0" in error


def test_the_detector_finds_what_annotate_finds(
    untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    """`--crops detector` scores what `vafer annotate` would write, sparse pictures and all."""
    trees.aff_wild2(tmp_path / "data")
    run("annotate", tmp_path / "data" / "cropped_aligned", "--out", tmp_path / "r.parquet",
        "--model", untrained, "--detector", yunet, "--quiet")  # fmt: skip
    common = ("evaluate", "--dataset", "aff-wild2", "--root", tmp_path / "data")
    run(*common, "--predictions", tmp_path / "r.parquet", "--out", tmp_path / "a")
    run(*common, "--model", untrained, "--crops", "detector", "--detector", yunet,
        "--out", tmp_path / "b")  # fmt: skip
    a, b = (pl.read_parquet(tmp_path / name / "frames.parquet") for name in "ab")
    assert a.equals(b)
    assert a.filter(pl.col("valence").is_null())["frame_index"].to_list() == [6, 6]
    by_labels = tmp_path / "c"
    run(*common, "--model", untrained, "--detector", yunet, "--out", by_labels)
    both = a.join(pl.read_parquet(by_labels / "frames.parquet"), on=["video", "frame_index"])
    apart = (both["valence"] - both["valence_right"]).abs()
    assert apart.median() < 0.2  # the same frames, faces found a little otherwise


def test_two_people_of_one_folder_are_scored_each(untrained: Path, tmp_path: Path) -> None:
    labels = trees.aff_wild2(tmp_path / "data", sides=True)
    out = tmp_path / "out"
    _, told = run("evaluate", "--dataset", "aff-wild2", "--root", tmp_path / "data",
                  "--model", untrained, "--out", out)  # fmt: skip
    assert "video5" in told
    assert "Whom a picture shows is not known" in told
    frames = pl.read_parquet(out / "frames.parquet")
    expected = sorted(key for key in labels if key[0][:6] in ("video4", "video5"))
    assert sorted(frames.select("video", "frame_index").rows()) == expected
    by_side = frames.filter(pl.col("video").str.starts_with("video5_"))
    assert by_side.group_by("video").agg(pl.col("valence").count()).sort("video").rows() == [
        ("video5_left", 17), ("video5_right", 17),
    ]  # fmt: skip


def test_frames_read_back_give_the_same_scores(untrained: Path, tmp_path: Path) -> None:
    """Frame indices of frames.parquet are the labels', though pictures are missing."""
    trees.aff_wild2(tmp_path / "data")
    common = ("evaluate", "--dataset", "aff-wild2", "--root", tmp_path / "data")
    run(*common, "--model", untrained, "--out", tmp_path / "a")
    run(*common, "--predictions", tmp_path / "a" / "frames.parquet", "--out", tmp_path / "b")
    assert scores_in(tmp_path / "a")["overall"] == scores_in(tmp_path / "b")["overall"]


def test_what_was_chosen_for_the_user_is_told_and_kept(
    untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    trees.afew_va(tmp_path / "data", n_actors=2, clips_per_actor=1)
    afew = ("evaluate", "--dataset", "afew-va", "--root", tmp_path / "data")
    model, detector = f"model {DEFAULT_MODEL} (embedded, the default)", "detector vafer-faces"
    for options, told, origins in (
        ((), model, (["embedded"], None)),
        (("--crops", "detector"), f"{model}, {detector} (embedded, the default)",
         (["embedded"], "embedded")),
        (("--crops", "detector", "--model", untrained),
         f"model {untrained} (file), {detector} (embedded, the default)",
         (["file"], "embedded")),
        (("--crops", "detector", "--model", untrained, "--detector", yunet), None,
         (["file"], "file")),
    ):  # fmt: skip
        out = tmp_path / str(hash(options))
        _, notices = run(*afew, *options, "--out", out)
        assert told in notices if told else "detector" not in notices
        origin = scores_in(out)["provenance"]["inputs"]["origin"]
        assert (origin["models"], origin["detector"]) == origins


def test_an_overwritten_folder_holds_nothing_of_before(
    untrained: Path, shared: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.afew_va(tmp_path / "data", n_actors=5, clips_per_actor=1)
    trees.affectnet_csv(tmp_path / "other")
    out = tmp_path / "out"
    afew = ("evaluate", "--dataset", "afew-va", "--root", tmp_path / "data", "--out", out)
    by_detector = (*afew, "--model", untrained, "--crops", "detector")
    other = shared / "models" / "scrfd_500m.onnx"
    run(*by_detector, "--detector", yunet)
    assert not (out / "features.png").exists()
    before = scores_in(out)["provenance"]["inputs"]["detector_sha256"]
    _, error = run(*by_detector, "--detector", other, code=2)
    assert "holds scores already: detector_sha256 " in error
    with monkeypatch.context() as patch:

        def stop(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "plot_traces", stop)
        run(*by_detector, "--detector", other, "--overwrite", code=130)
        assert not (out / "scores.json").exists()  # rather than beside other frames
    run(*by_detector, "--detector", other, "--overwrite")
    assert scores_in(out)["provenance"]["inputs"]["detector_sha256"] != before
    run(*afew, "--model", untrained, "--overwrite")
    assert (out / "features.png").exists()
    frames = tmp_path / "frames.parquet"
    frames.write_bytes((out / "frames.parquet").read_bytes())
    run(*afew, "--predictions", frames, "--overwrite")
    assert {p.name for p in out.iterdir()} == {
        "scores.json", "frames.parquet", "split.json", "traces-01.png", "predictions.png",
        "error_plane.png",
    }  # fmt: skip
    run("evaluate", "--dataset", "affectnet", "--root", tmp_path / "other", "--model", untrained,
        "--out", out, "--overwrite")  # fmt: skip
    assert {p.name for p in out.iterdir()} == {
        "scores.json", "frames.parquet", "predictions.png", "error_plane.png", "features.png",
    }  # fmt: skip


def test_what_cannot_be_read_is_named_and_the_rest_is_scored(
    untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    trees.afew_va(tmp_path / "data", n_actors=5, clips_per_actor=1)
    picture = tmp_path / "data" / "01" / "002" / "00001.png"
    picture.write_bytes(picture.read_bytes()[:200])
    common = ("evaluate", "--dataset", "afew-va", "--root", tmp_path / "data", "--model", untrained,
              "--quiet")  # fmt: skip
    _, told = run(*common, "--out", tmp_path / "a", code=1)
    assert "01/002: 1 labelled frame cannot be read" in told
    assert scores_in(tmp_path / "a")["overall"]["n_scored"] == 19
    assert scores_in(tmp_path / "a")["provenance"]["faces"]["unreadable"] == 1
    _, told = run(*common, "--crops", "detector", "--detector", yunet, "--out", tmp_path / "b",
                  code=1)  # fmt: skip
    assert "partial: 002: 1 picture cannot be read" in told
    picture.unlink()
    picture.symlink_to("nowhere.png")  # as git-annex leaves what it has not fetched
    _, told = run(*common, "--out", tmp_path / "link", code=1)
    assert "01/002: 1 labelled frame cannot be read" in told
    trees.affectnet_csv(tmp_path / "net")
    (tmp_path / "net" / "Manually_Annotated_Images" / "1" / "validation3.jpg").write_bytes(b"no")
    _, told = run("evaluate", "--dataset", "affectnet", "--root", tmp_path / "net", "--model",
                  untrained, "--out", tmp_path / "c", code=1)  # fmt: skip
    assert "1 picture cannot be read: 1/validation3.jpg" in told


def test_two_runs_do_not_write_to_one_folder(
    predicted: tuple[Path, trees.Labels, dict],
) -> None:
    folder, *_ = predicted
    with own_folder(folder / "out"):
        _, error = run("evaluate", "--dataset", "afew-va", "--root", folder / "data",
                       "--predictions", folder / "results.parquet", "--out", folder / "out",
                       code=2)  # fmt: skip
    assert "out is being written by another run" in error
    assert not (folder / "out").exists()


def test_scores_of_something_else_are_not_replaced(
    predicted: tuple[Path, trees.Labels, dict],
) -> None:
    folder, *_ = predicted
    common = ("evaluate", "--dataset", "afew-va", "--root", folder / "data", "--predictions",
              folder / "results.parquet", "--out", folder / "out")  # fmt: skip
    run(*common)
    before = (folder / "out" / "scores.json").read_bytes()
    run(*common)
    assert (folder / "out" / "scores.json").read_bytes() == before
    _, error = run(*common, "--missing", "neutral", code=2)
    assert "out holds scores already: missing drop against neutral" in error
    assert (folder / "out" / "scores.json").read_bytes() == before
    run(*common, "--missing", "neutral", "--overwrite")
    assert scores_in(folder / "out")["overall"]["missing"] == "neutral"
    (folder / "out" / "scores.json").write_text("{}")
    _, error = run(*common, code=2)
    assert "was not written by vafer evaluate" in error


def test_a_run_that_was_cut_off_goes_on(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.afew_va(tmp_path / "data", n_actors=6, clips_per_actor=1)
    work: list[int] = []
    predict = Predictor._predict
    monkeypatch.setattr(Predictor, "_predict", lambda *a: work.append(1) or predict(*a))

    def stop(progress: EvaluationProgress) -> None:
        if progress.n_done == 12:
            raise KeyboardInterrupt

    common: dict = {"root": tmp_path / "data", "model": untrained, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        evaluate("afew-va", **common, on_progress=stop)
    assert not (tmp_path / "out" / "scores.json").exists()
    done: list[EvaluationProgress] = []
    evaluate("afew-va", **common, on_progress=done.append)
    assert len(work) == 6  # clips, none twice
    assert [p.n_done for p in done] == [0, 4, 8, 12, 16, 20, 24]
    monkeypatch.undo()
    again = evaluate("afew-va", root=tmp_path / "data", model=untrained, out=tmp_path / "other")
    assert again.frames.equals(pl.read_parquet(tmp_path / "out" / "frames.parquet"))


def test_the_root_may_come_from_the_environment(
    predicted: tuple[Path, trees.Labels, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, *_ = predicted
    (folder / "data").rename(folder / "afew-va")
    monkeypatch.setenv("VAFER_DATA", str(folder))
    monkeypatch.chdir(folder)
    shown, _ = run("evaluate", "--dataset", "afew-va", "--predictions", "results.parquet")
    assert "evaluations/afew-va-all-results" in shown
    assert (folder / "evaluations" / "afew-va-all-results" / "scores.json").is_file()


def test_what_cannot_be_done_is_said_before_anything_is(
    predicted: tuple[Path, trees.Labels, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, *_ = predicted
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "predict", None)
    trees.aff_wild(tmp_path / "wild", faces=())
    trees.affectnet_csv(tmp_path / "net")
    afew = ("--dataset", "afew-va", "--root", folder / "data")
    table = ("--predictions", folder / "results.parquet")
    for arguments, message in (
        (("--dataset", "emotion"), "dataset 'emotion': expected one of afew-va, aff-wild"),
        (("--dataset", "AFEW_VA"), "did you mean afew-va?"),
        ((*afew, *table, "--model", "x"), "both --predictions and --model"),
        ((*afew, *table, "--missing", "guess"), "--missing guess: expected drop or carry or"),
        ((*afew, *table, "--crops", "mine"), "--crops mine: expected labels or detector"),
        (
            (*afew, *table, "--fold", 7),
            "afew-va has no fold 7; expected --fold 0, 1, 2, 3, 4 or --split all",
        ),
        ((*afew, *table, "--fold", 1, "--split", "all"), "both a split and a fold"),
        ((*afew, "--predictions", folder / "none.parquet"), "none.parquet: found no such file"),
        (afew, "10 of 10 clips have no pictures: 01/001"),
        ((*afew, "--model", tmp_path), "no model.safetensors in this folder"),
        (("--dataset", "affectnet", "--root", tmp_path / "net", "--fold", 0), "names no subjects"),
        (("--dataset", "aff-wild", "--root", folder / "data"), "annotations/train/valence/"),
    ):
        _, error = run("evaluate", *arguments, "--out", tmp_path / "out", code=2)
        assert message in error, error
    assert not (tmp_path / "out").exists()


def test_where_no_face_is_found_the_box_is_the_crop(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaceFinder, "_detected", lambda *_: None)
    for faces, ways in ((("bboxes",), {"box": 24}), ((), {"no face": 24})):
        root = tmp_path / f"wild-{len(faces)}"
        trees.aff_wild(root, faces=faces, n_videos=2)
        common = ("evaluate", "--dataset", "aff-wild", "--root", root, "--model", untrained)
        out = tmp_path / f"out-{len(faces)}"
        run(*common, "--split-fraction", 0.5, "--out", out)
        scores = scores_in(out)
        n = sum(scores["provenance"]["faces"].values())
        assert scores["provenance"]["faces"] == dict.fromkeys(ways, n)
        assert scores["overall"]["n_scored"] == (n if faces else 0)
        assert (scores["overall"]["valence"]["rmse"] is None) == (not faces)


def test_an_error_in_a_list_ends_the_program_in_order(tmp_path: Path) -> None:
    """No thread of the CSV reader is left, which would abort the process at its exit."""
    trees.affectnet_csv(tmp_path, n_validation=200)
    text = (tmp_path / "validation.csv").read_text()
    (tmp_path / "validation.csv").write_text(text.replace("valence", "Valence", 1))
    command = [sys.executable, "-m", "vafer.cli", "evaluate", "--dataset", "affectnet", "--root",
               str(tmp_path), "--out", str(tmp_path / "out")]  # fmt: skip
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "expected valence too" in done.stderr
        assert "terminate" not in done.stderr


def test_faces_that_do_not_fit_into_a_gpu_are_predicted_in_halves(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.afew_va(tmp_path / "data", n_actors=5, n_frames=9)
    common: dict = {"root": tmp_path / "data", "model": untrained}
    expected = evaluate("afew-va", **common, out=tmp_path / "a")
    whole, most = Model.predict_with_features, 2

    def small(self: Model, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(crops) > most and crops.std() > 0:  # not the grey one that a model is tried on
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, crops)

    monkeypatch.setattr(Model, "predict_with_features", small)
    found = evaluate("afew-va", **common, out=tmp_path / "b")
    for name in ("valence", "arousal"):
        np.testing.assert_allclose(found.frames[name], expected.frames[name], atol=1e-5)
    most = 0
    with pytest.raises(ModelError, match="one face does not fit"):
        evaluate("afew-va", **common, out=tmp_path / "c")


# Sends itself what Ctrl-C sends, when the scores of before are gone.
INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, not as under nohup
from vafer import cli, evaluation
def clear(folder):
    (folder / evaluation.SCORES).unlink()
    signal.raise_signal(signal.SIGINT)
evaluation._clear = clear
cli.main()
"""


def test_an_interrupt_before_the_scores_are_written_is_told_as_such(
    predicted: tuple[Path, trees.Labels, dict],
) -> None:
    folder, *_ = predicted
    command = ["evaluate", "--dataset", "afew-va", "--root", folder / "data", "--predictions",
               folder / "results.parquet", "--out", folder / "out"]  # fmt: skip
    run(*command)
    python = [sys.executable, "-c", INTERRUPTED, *map(str, command)]
    stopped = subprocess.run(python, capture_output=True, text=True)
    assert stopped.returncode == 130
    assert "the same command goes on" in stopped.stderr
    assert not list(folder.rglob("*.tmp"))
    run(*command)
    assert (folder / "out" / "scores.json").is_file()
