"""Which model predicts whom, and whom of those it was trained on."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vafer.crops import CropSpec
from vafer.datasets.labels import Dataset, no_faces, to_labels
from vafer.datasets.splits import Selection, hash_name, select
from vafer.errors import ModelError, UsageError
from vafer.folds import choose_models, shares, trained_on
from vafer.model import AVNet, ModelCard, save_model
from vafer.options import SplitOptions
from vafer.store import DEFAULT_MODEL, find_model

ACTORS = {f"{i:03d}": f"actor {i % 7}" for i in range(20)}


def dataset(name: str, units: Any, frames_in: Any = "pictures", **columns: Any) -> Dataset:
    labels = to_labels({"frame_index": 0, "valence": 0.1, "arousal": 0.2, **columns})
    return Dataset(
        name, Path("/data"), labels, frames_in, units, lambda rows, must_exist: no_faces(rows)
    )


AFEW = dataset("afew-va", "subject", video=[*ACTORS], subject=[*ACTORS.values()])
WILD = dataset("aff-wild", "video", "videos", video=[f"{i}" for i in range(100, 110)])
NET = dataset(
    "affectnet", None, "images", video=["1/a.jpg", "1/b.jpg", "2/c.jpg"],
    split=["train", "train", "validation"],
)  # fmt: skip


def card(name: str = "net", **training: Any) -> ModelCard:
    return ModelCard(name, "alexnet", 1, CropSpec(size=64), training=training)


def of_run(wanted: Dataset, selection: Selection, **changes: Any) -> dict[str, Any]:
    """What `vafer train` writes of a run that held this selection out."""
    facts: dict[str, Any] = {"dataset": wanted.name, "held_out": dict(selection.described)}
    if wanted.frames_in != "images":
        facts["videos_sha256"] = [hash_name(v) for v in selection.others["video"].unique()]
    subjects = selection.others["subject"].drop_nulls().unique()
    return facts | {"subjects_sha256": [hash_name(s) for s in subjects]} | changes


def write(path: Path, **training: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, AVNet("alexnet", 1), card(path.parent.name, **training))
    return path


def model_files(model: str | Path | None) -> tuple[Path, ...]:
    return tuple(choice.path for choice in choose_models(model))


def write_runs(folder: Path, folds: list[int]) -> tuple[Path, ...]:
    for fold in folds:
        training = of_run(AFEW, select(AFEW, SplitOptions(fold=fold)))
        write(folder / f"run-{fold}" / "model.safetensors", **training)
    return model_files(folder)


class TestFiles:
    def test_by_name(self) -> None:
        assert model_files(None) == model_files(DEFAULT_MODEL) == (find_model(None),)

    def test_a_file(self, untrained: Path) -> None:
        assert model_files(untrained) == model_files(str(untrained)) == (untrained,)

    def test_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").touch()
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "best.safetensors").touch()
        assert model_files(tmp_path) == (tmp_path / "model.safetensors",)
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "model.safetensors").touch()
        with pytest.raises(ModelError, match="holds a model, and 1 more in the folders below"):
            model_files(tmp_path)

    def test_a_folder_of_runs(self, tmp_path: Path) -> None:
        for name in "cab":
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").touch()
        (tmp_path / "logs").mkdir()
        expected = tuple(tmp_path / name / "model.safetensors" for name in "abc")
        assert model_files(str(tmp_path)) == expected

    def test_a_folder_without_models(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"{re.escape(str(tmp_path))}: no model.safetensors"):
            model_files(tmp_path)

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no such file"):
            model_files(tmp_path / "gone.safetensors")
        with pytest.raises(ModelError, match="cannot be read"):
            model_files("x" * 5000)

    def test_an_embedded_name_is_no_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path(DEFAULT_MODEL).mkdir()
        (Path(DEFAULT_MODEL) / "model.safetensors").touch()
        assert model_files(DEFAULT_MODEL) == (find_model(DEFAULT_MODEL),)
        assert model_files(f"{tmp_path}/{DEFAULT_MODEL}")[0].parent.parent == tmp_path


class TestShares:
    def test_one_model_predicts_all(self, untrained: Path) -> None:
        every = select(AFEW, SplitOptions())
        ((path, rows),) = shares([untrained], AFEW, every, every.chosen)
        assert path == untrained
        assert rows.equals(every.chosen)

    def test_folds_of_another_assignment_are_refused(self, tmp_path: Path) -> None:
        models = write_runs(tmp_path, [0, 1, 2, 3, 4])
        selection = select(AFEW, SplitOptions(n_folds=3))
        with pytest.raises(ModelError, match=r"n_folds is 5, here it is 3\. Give --n-folds"):
            shares(models, AFEW, selection, AFEW.locate(selection.chosen, must_exist=False))

    def test_each_predicts_the_fold_that_it_held_out(self, tmp_path: Path) -> None:
        models = write_runs(tmp_path, [3, 0, 4, 1, 2])
        every = select(AFEW, SplitOptions())
        found = shares(models[::-1], AFEW, every, every.chosen)
        assert [path.parent.name for path, _ in found] == [f"run-{k}" for k in range(5)]
        for fold, (_, rows) in enumerate(found):
            assert rows.equals(select(AFEW, SplitOptions(fold=fold)).chosen)

    def test_of_one_fold_one_model_has_work(self, tmp_path: Path) -> None:
        models = write_runs(tmp_path, [0, 1, 2])
        fold = select(AFEW, SplitOptions(fold=1))
        ((path, rows),) = shares(models, AFEW, fold, fold.chosen)
        assert path.parent.name == "run-1"
        assert rows.equals(fold.chosen)

    def test_folds_without_a_model(self, tmp_path: Path) -> None:
        models = write_runs(tmp_path, [0, 2])
        every = select(AFEW, SplitOptions())
        n = sum(len(select(AFEW, SplitOptions(fold=k)).chosen) for k in (0, 2))
        with pytest.raises(UsageError, match=f"folds 0, 2 of afew-va, which are {n} of the 20 fr"):
            shares(models, AFEW, every, every.chosen)
        fold = select(AFEW, SplitOptions(fold=1))
        with pytest.raises(UsageError, match=f"0 of the {len(fold.chosen)} frames.*--fold"):
            shares(models, AFEW, fold, fold.chosen)

    def test_two_models_of_one_fold(self, tmp_path: Path) -> None:
        write_runs(tmp_path, [0, 1])
        training = of_run(AFEW, select(AFEW, SplitOptions(fold=1)))
        write(tmp_path / "again" / "model.safetensors", **training)
        every = select(AFEW, SplitOptions())
        with pytest.raises(UsageError, match=r"again.*run-1.* both held out fold 1 of afew-va"):
            shares(model_files(tmp_path), AFEW, every, every.chosen)

    @pytest.mark.parametrize(
        "training",
        [
            {},
            {"dataset": "afew-va"},
            {"dataset": "afew-va", "held_out": {"part": "validation"}},
            {"dataset": "aff-wild2", "held_out": {"part": 1}},
        ],
    )
    def test_a_model_that_does_not_say_its_fold(
        self, tmp_path: Path, training: dict[str, Any]
    ) -> None:
        write_runs(tmp_path, [0])
        other = write(tmp_path / "other" / "model.safetensors", **training)
        every = select(AFEW, SplitOptions())
        with pytest.raises(ModelError, match=f"{re.escape(str(other))}.*which fold of afew-va"):
            shares(model_files(tmp_path), AFEW, every, every.chosen)


class TestTrainedOn:
    @pytest.mark.parametrize(
        ("datasets", "says"),
        [(["aff-wild", "afew-va"], "on afew-va, and does not say on which part"), (None, None)],
    )
    def test_a_dataset_that_is_named_whole(self, datasets: Any, says: str | None) -> None:
        every = select(AFEW, SplitOptions())
        found = trained_on(card(datasets=datasets), AFEW, every, every.chosen)
        assert (found is None) if says is None else says in str(found)

    def test_a_fold_that_was_held_out(self) -> None:
        fold = select(AFEW, SplitOptions(fold=2))
        assert trained_on(card(**of_run(AFEW, fold)), AFEW, fold, fold.chosen) is None
        assert trained_on(card(), AFEW, fold, fold.chosen) is None

    def test_subjects(self) -> None:
        fold, other = (select(AFEW, SplitOptions(fold=k)) for k in (2, 3))
        run = card("mine", **of_run(AFEW, fold))
        actors = sorted({*other.chosen["subject"]})
        assert trained_on(run, AFEW, other, other.chosen) == (
            f"mine was trained on {len(actors)} of the {len(actors)} subjects scored: "
            f"{', '.join(actors)}. These scores are not person-independent"
        )
        every = select(AFEW, SplitOptions())
        text = trained_on(run, AFEW, every, every.chosen)
        n = 7 - fold.chosen["subject"].n_unique()
        assert text is not None
        assert f"trained on {n} of the 7 subjects scored" in text
        assert f"and {n - 3} more." in text

    def test_a_person_of_another_dataset_is_the_same(self) -> None:
        fold = select(AFEW, SplitOptions(fold=2))
        actor = fold.chosen["subject"][0]
        text = trained_on(
            card(dataset="faces", subjects_sha256=[hash_name(actor)]), AFEW, fold, fold.chosen
        )
        assert text is not None
        assert actor in text

    def test_videos(self) -> None:
        kept = select(WILD, SplitOptions(seed=1))
        run = card(**of_run(WILD, kept))
        assert trained_on(run, WILD, kept, kept.chosen) is None
        train = select(WILD, SplitOptions(seed=1, split="train"))
        text = trained_on(run, WILD, train, train.chosen)
        assert text is not None
        assert "trained on 8 of the 8 videos scored" in text
        assert text.endswith("not of unseen videos")
        every = select(WILD, SplitOptions(split="all"))  # of which those that it has not seen
        assert trained_on(run, WILD, every, kept.chosen) is None

    def test_videos_of_one_name_in_two_datasets(self) -> None:
        every = select(WILD, SplitOptions(split="all"))
        run = of_run(AFEW, select(AFEW, SplitOptions(fold=0)))
        run["videos_sha256"] = [hash_name(v) for v in every.chosen["video"]]
        assert trained_on(card(**run), WILD, every, every.chosen) is None

    def test_single_pictures_by_the_set(self) -> None:
        kept, train, every = (
            select(NET, SplitOptions(split=split)) for split in ("validation", "train", "all")
        )
        run = card(**of_run(NET, kept))
        assert trained_on(run, NET, kept, kept.chosen) is None
        for part in (train, every):
            text = trained_on(run, NET, part, part.chosen)
            assert text is not None
            assert f"all of affectnet but validation, and {part.part} is scored" in text
        assert trained_on(card(dataset="faces"), NET, train, train.chosen) is None

    def test_single_pictures_parted_otherwise(self, tmp_path: Path) -> None:
        path = tmp_path / "split.json"
        path.write_text(
            '{"dataset": "affectnet", "by": "video", "parts": '
            '{"1/a.jpg": "validation", "1/b.jpg": "train", "2/c.jpg": "train"}}'
        )
        mine, official = (
            select(NET, SplitOptions(assignment=assignment)) for assignment in (path, None)
        )
        run = card(**of_run(NET, official))
        text = trained_on(run, NET, mine, mine.chosen)
        assert text is not None
        assert re.search(r"but validation, and validation of the assignment \w{8} is scored", text)
        assert trained_on(card(**of_run(NET, mine)), NET, mine, mine.chosen) is None


def test_rows_need_not_be_all_of_the_selection() -> None:
    """What has no frame is left out of located rows, and of what is said."""
    fold, other = (select(AFEW, SplitOptions(fold=k)) for k in (2, 3))
    rows = other.chosen.filter(pl.col("subject") == other.chosen["subject"][0])
    text = trained_on(card(**of_run(AFEW, fold)), AFEW, other, rows)
    assert text is not None
    assert "1 of the 1 subjects" in text
