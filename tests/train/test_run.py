"""A whole run in its folder, by function and by command line; resumed, refused, summed up."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.toys import toy_config, toy_faces, toy_split
from train import run as module
from train.config import GroupingConfig, TrainConfig, read_config
from train.data import Split
from train.loop import DivergedError
from train.parallel import Team
from train.run import Outcome, Report, train
from vafer import metrics
from vafer.datasets.splits import hash_name
from vafer.errors import OutputError, UsageError, VaferError
from vafer.model import load_model, read_card

FILES = {
    "config.yaml", "data.json", "log.jsonl", "evaluations.jsonl", "tensorboard", "checkpoints",
    "scores.json", "model.safetensors", "losses.png", "features.png", "predictions-held_out.png",
}  # fmt: skip
LOGGED = {
    "step", "loss_critic", "loss_adv", "loss_av", "margin_mi", "margin_delta", "n_strong", "n_weak",
    "critic_steps", "skipped_steps", "lr", "images_per_s",
}  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[Report]]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    reports: list[Report] = []
    outcome = train(toy_config(), out, split=toy_split(), on_report=reports.append)
    return out, outcome, reports


def test_a_run_leaves_what_is_promised(finished: tuple[Path, Outcome, list[Report]]) -> None:
    out, _, reports = finished
    assert {p.name for p in out.iterdir()} == FILES
    log = lines(out / "log.jsonl")
    assert [entry["step"] for entry in log] == [2, 4, 6]
    assert all(set(entry) == LOGGED for entry in log)
    assert log == [r.entry for r in reports]
    assert all(e["n_strong"] + e["n_weak"] == 16 for e in log)
    assert [e["step"] for e in lines(out / "evaluations.jsonl")] == [3, 6]
    assert read_config(out / "config.yaml") == toy_config()
    assert any(p.name.startswith("events") for p in (out / "tensorboard").iterdir())
    assert (out / "checkpoints" / "last.pt").is_file()
    for picture in out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_model_file_gives_the_scores(finished: tuple[Path, Outcome, list[Report]]) -> None:
    out, outcome, _ = finished
    model = load_model(out / "model.safetensors")
    assert model.card.training["subjects_sha256"] == sorted(hash_name(f"toy-{i}") for i in range(8))
    assert "critic" not in " ".join(model.net.state_dict())
    held_out = toy_faces(32, name="held_out", seed=1)
    middle = torch.from_numpy(held_out.crops[..., 4:-4, 4:-4]).expand(-1, 3, -1, -1)
    expected = metrics.scores(held_out.labels, model.predict(middle).numpy())
    written = json.loads((out / "scores.json").read_text())
    assert written["sets"] == outcome.scores[0]
    assert written["critic_steps"] + written["skipped_steps"] == written["iterations"] == 6
    for dimension, found in expected.items():
        assert written["sets"]["held_out"][dimension] == pytest.approx(found, abs=1e-5)
    assert model.card.metrics == written["sets"]


@pytest.mark.parametrize("at", [2, 3])
def test_a_stopped_run_goes_on_exactly(
    at: int, finished: tuple[Path, Outcome, list[Report]], tmp_path: Path
) -> None:
    """A Ctrl-C in the middle of an iteration keeps it; then model and log equal the whole run's."""
    out = tmp_path / "whole"
    calls = 0
    iterate = module.training_steps

    def strike(*args: object) -> object:
        nonlocal calls
        for step in iterate(*args):
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "training_steps", strike)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config(), out, split=toy_split())
    assert not (out / "model.safetensors").exists()
    notices: list[str] = []
    train(toy_config(), out, split=toy_split(), resume=True, on_notice=notices.append)
    assert f"seed 0: going on after iteration {at}" in notices
    whole = finished[0]
    ours, theirs = (load_model(f / "model.safetensors").net.state_dict() for f in (out, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    without_rate = [
        [{k: v for k, v in e.items() if k != "images_per_s"} for e in lines(f / "log.jsonl")]
        for f in (out, whole)
    ]
    assert without_rate[0] == without_rate[1]
    assert lines(out / "evaluations.jsonl") == lines(whole / "evaluations.jsonl")
    scores = [json.loads((f / "scores.json").read_text()) for f in (out, whole)]
    assert scores[0] == scores[1]


def test_a_longer_run_goes_on_from_a_shorter(tmp_path: Path) -> None:
    """With a stepped rate the end changes nothing before it, so a run can be made longer."""
    longer = toy_config(iterations=8)
    train(toy_config(), tmp_path / "run", split=toy_split())
    train(longer, tmp_path / "run", split=toy_split(), resume=True)
    train(longer, tmp_path / "other" / "run", split=toy_split())
    ours, theirs = (
        load_model(folder / "run" / "model.safetensors").net.state_dict()
        for folder in (tmp_path, tmp_path / "other")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["iterations"] == 8
    with pytest.raises(UsageError, match="iterations was 8, is 6: expected as many or more"):
        train(toy_config(), tmp_path / "run", split=toy_split(), resume=True)


def test_folders_in_use_and_other_configs_are_refused(
    finished: tuple[Path, Outcome, list[Report]],
) -> None:
    out = finished[0]
    with pytest.raises(UsageError, match="holds a run already: --resume goes on"):
        train(toy_config(), out, split=toy_split())
    with pytest.raises(UsageError, match=r"seeds was \(0,\), is \(1,\)"):
        train(toy_config(seeds=(1,)), out, split=toy_split(), resume=True)
    other = toy_config(batch_size=8, grouping=GroupingConfig(method="kmeans"))
    with pytest.raises(
        UsageError, match=r"grouping\.method was otsu, is kmeans; batch_size was 16, is 8"
    ):
        train(other, out, split=toy_split(), resume=True)
    notices: list[str] = []
    again = train(
        toy_config(log_every=1), out, split=toy_split(), resume=True, on_notice=notices.append
    )
    assert "seed 0: finished by an earlier run" in notices
    assert again.scores == finished[1].scores


def test_a_run_does_not_go_on_with_other_faces(tmp_path: Path) -> None:
    """A data set that was completed since may have other persons in its folds."""
    out, held_out = tmp_path / "run", toy_faces(32, name="held_out", seed=1)
    train(toy_config(iterations=3), out, split=toy_split())
    before = (out / "data.json").read_bytes()
    more = Split((toy_faces(80),), (held_out,), {})
    renamed, relabelled = toy_faces(), toy_faces()
    renamed.subjects[0] = "somebody"
    relabelled.labels[3, 1] += 0.1
    others = [Split((faces,), (held_out,), {}) for faces in (renamed, relabelled)]
    swapped = Split((toy_faces(),), (toy_faces(32, name="held_out", seed=2),), {})
    for split, says in (
        (more, r"trained_on\.toy 64 faces against 80\. Expected"),
        *((other, r"trained_on\.toy as many, but others.* put them back") for other in others),
        (swapped, r"there against here: held_out\.held_out as many, but others\. "),
    ):
        with pytest.raises(UsageError, match=f"begun with other faces, .*{says}"):
            train(toy_config(iterations=3), out, split=split, resume=True)
    assert (out / "data.json").read_bytes() == before
    for damaged in ("", "[]", "{}", '{"trained_on": 5}'):
        (out / "data.json").write_text(damaged)
        with pytest.raises(
            UsageError, match=r"data\.json is damaged .* cannot be told: begin anew"
        ):
            train(toy_config(), out, split=toy_split(), resume=True)
    told: list[str] = []
    (out / "data.json").unlink()
    (out / "checkpoints" / "last.pt").rename(out / "kept.pt")
    (out / "scores.json").unlink()
    train(toy_config(iterations=3), out, split=toy_split(), resume=True, on_notice=told.append)
    assert any(text.endswith("cannot be told") and "no data.json" in text for text in told)
    assert any("has no checkpoint: it starts anew" in text for text in told)
    told.clear()
    fewer = json.loads(before) | {"processes": 4}
    (out / "data.json").write_text(json.dumps(fewer))
    train(toy_config(), out, split=toy_split(), resume=True, on_notice=told.append)
    assert any(text.startswith("the number of processes was 4, is 1: dropout") for text in told)
    assert json.loads((out / "data.json").read_text()) == fewer  # what it was begun with


def test_a_finished_run_that_lost_its_model_makes_it_again(tmp_path: Path) -> None:
    config, model = toy_config(iterations=3), tmp_path / "run" / "model.safetensors"
    train(config, tmp_path / "run", split=toy_split())
    before = model.read_bytes()
    model.unlink()
    told: list[str] = []
    train(config, tmp_path / "run", split=toy_split(), resume=True, on_notice=told.append)
    assert f"seed 0: finished by an earlier run, but {model} is gone: it is made again" in str(told)
    assert model.read_bytes() == before
    model.unlink()
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    train(config, tmp_path / "run", split=toy_split(), resume=True, on_notice=told.append)
    assert told[-1].endswith("is gone, and so is the checkpoint to make it of")
    assert not model.exists()  # days of training are begun anew by nobody's wish


def test_seeds_that_were_not_begun_are_not_called_lost(tmp_path: Path) -> None:
    train(toy_config(iterations=3, seeds=(0, 1)), tmp_path / "out", split=toy_split())
    told: list[str] = []
    more = toy_config(iterations=3, seeds=(0, 1, 2))
    train(more, tmp_path / "out", split=toy_split(), resume=True, on_notice=told.append)
    assert "seed 1: finished by an earlier run" in told
    assert not any("starts anew" in text for text in told)


def test_graded_labels_that_differ_are_told(tmp_path: Path) -> None:
    config = toy_config(iterations=3, critic="none")
    faces = replace(toy_faces(), posteriors=np.full((64, 7), 1 / 7, np.float32))
    split = replace(toy_split(), train=(faces,))
    train(config, tmp_path / "run", split=split)
    told: list[str] = []
    train(config, tmp_path / "run", split=split, resume=True, on_notice=told.append)
    assert not any("graded" in text for text in told)
    others = replace(split, train=(replace(faces, labels=faces.labels * np.float32(0.99)),))
    train(config, tmp_path / "run", split=others, resume=True, on_notice=told.append)
    assert any(text.startswith("the graded labels are others than it began with") for text in told)
    smiling = replace(faces, expressions=np.full(64, "happy", object))
    with pytest.raises(UsageError, match=r"begun with other faces, .*trained_on\.toy as many"):
        train(config, tmp_path / "run", split=replace(split, train=(smiling,)), resume=True)


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "last.pt" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"last\.pt.* cannot be .* No space .* --resume goes"):
            train(toy_config(), out, split=toy_split())
    assert not list(out.rglob("*.tmp"))
    train(toy_config(), out, split=toy_split(), resume=True)
    assert (out / "model.safetensors").is_file()


def test_what_cannot_be_read_before_it_begins_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr(module, "load_split", refused)
    with pytest.raises(UsageError, match=r"^/cache cannot be .* denied\. Nothing was trained"):
        train(toy_config(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_processes_that_see_different_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(Team, "agrees", lambda self, own: asked.append(own))
    with pytest.raises(UsageError, match="not all processes find the same state of the run"):
        train(toy_config(), tmp_path / "out", split=toy_split())
    monkeypatch.undo()
    train(toy_config(), tmp_path / "out", split=toy_split(), resume=True)
    monkeypatch.setattr(Team, "agrees", lambda self, own: asked.append(own))
    with pytest.raises(UsageError, match="not all processes find the same state of the run"):
        train(toy_config(), tmp_path / "out", split=toy_split(), resume=True)
    assert asked == [(True, 0), (False, 0)]


def test_several_seeds_are_summed_up(tmp_path: Path) -> None:
    config = toy_config(seeds=(0, 1, 2), iterations=3, critic="none")
    outcome = train(config, tmp_path / "out", split=toy_split())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.yaml", "data.json", "scores.json", "seed-0", "seed-1", "seed-2",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    rmse = [written["seeds"][str(s)]["held_out"]["valence"]["rmse"] for s in range(3)]
    found = written["over_seeds"]["held_out"]["valence"]["rmse"]
    assert found == {
        "mean": pytest.approx(np.mean(rmse)),
        "sd": pytest.approx(np.std(rmse, ddof=1)),
    }
    assert written["over_seeds"] == outcome.summary()
    assert len(set(rmse)) == 3


def test_an_undefined_score_has_no_mean() -> None:
    one = {"a": {d: {"pcc": p} for d, p in (("valence", None), ("arousal", 0.5))}}
    two = {"a": {d: {"pcc": 0.7} for d in ("valence", "arousal")}}
    summary = Outcome(Path(), {}, {0: one, 1: two}).summary()["a"]
    assert summary["valence"]["pcc"] == {"mean": None, "sd": None}
    assert summary["arousal"]["pcc"]["mean"] == pytest.approx(0.6)


def test_a_run_that_diverges_leaves_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.training_steps

    def bad(*args: object) -> object:
        for step in real(*args):
            if step.number == 5:
                raise DivergedError(5, "loss_critic", float("inf"))
            yield step

    monkeypatch.setattr(module, "training_steps", bad)
    with pytest.raises(
        DivergedError, match=r"iteration 5: loss_critic is inf.*last\.pt is the last"
    ):
        train(toy_config(), tmp_path / "out", split=toy_split())
    assert lines(tmp_path / "out" / "log.jsonl")[-1] == {"step": 5, "loss_critic": "inf"}
    checkpoint = torch.load(tmp_path / "out" / "checkpoints" / "last.pt", weights_only=True)
    assert checkpoint["progress"]["iteration"] == 3


def test_too_many_skipped_steps_are_told(tmp_path: Path) -> None:
    faces = toy_faces()
    faces.labels[:] = np.where(faces.labels > 0, 0.5, -0.5)  # one magnitude: all are strong
    split = Split((faces,), (toy_faces(32, name="held_out", seed=1),), {})
    notices: list[str] = []
    train(toy_config(), tmp_path / "out", split=split, on_notice=notices.append)
    assert any("the critic did not play in 100% of the iterations" in n for n in notices)


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    for config, message in (
        (toy_config(batch_size=100), "64 faces to train on: expected at least a batch of 100"),
        (toy_config(device="cuda:9"), "GPU 9 is wanted"),
    ):
        with pytest.raises(VaferError, match=message):
            train(config, tmp_path / "out", split=toy_split())
        assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        train(toy_config(), tmp_path / "file" / "x", split=toy_split())


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    refused: list[str] = []

    def start_another(report: Report) -> None:
        with pytest.raises(UsageError, match="is being written by another run") as error:
            train(toy_config(), tmp_path / "out", split=toy_split(), resume=True)
        refused.append(str(error.value))

    train(toy_config(log_every=6), tmp_path / "out", split=toy_split(), on_report=start_another)
    assert len(refused) == 1


def test_scores_in_bfloat16_are_those_of_the_model_file(tmp_path: Path) -> None:
    config = toy_config(precision="bfloat16", critic="none", iterations=20)
    found = train(config, tmp_path / "out", split=toy_split()).scores[0]["held_out"]
    held_out = toy_faces(32, name="held_out", seed=1)
    middle = torch.from_numpy(held_out.crops[..., 4:-4, 4:-4]).expand(-1, 3, -1, -1)
    predicted = load_model(tmp_path / "out" / "model.safetensors").predict(middle).numpy()
    for dimension, expected in metrics.scores(held_out.labels, predicted).items():
        assert found[dimension] == pytest.approx(expected, abs=1e-5)


def test_values_that_do_nothing_and_unnamed_persons_are_told(tmp_path: Path) -> None:
    held_out = toy_faces(32, name="held_out", seed=1)
    held_out.subjects[:] = None
    notices: list[str] = []
    config = toy_config(critic="none", iterations=1, grouping=GroupingConfig(method="kmeans"))
    train(config, tmp_path / "out", split=Split((toy_faces(),), (held_out,), {}),
          on_notice=notices.append)  # fmt: skip
    assert "grouping.method does nothing with critic none" in notices
    assert "held_out names no persons: some of them may be trained on too" in notices


def test_a_batch_that_processes_cannot_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    from train.parallel import Team

    @contextmanager
    def three(device: str):
        yield Team(0, 3), torch.device("cpu")

    monkeypatch.setattr(module, "join_team", three)
    with pytest.raises(UsageError, match="batch_size is 16: expected a multiple of 3 processes"):
        train(toy_config(), tmp_path / "out", split=toy_split())
    assert not (tmp_path / "out").exists()


# By command line


def vafer(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vafer.cli", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


QUICK = ["--set", "iterations=4", "--set", "batch_size=16", "--set", "evaluate_every=2",
         "--set", "checkpoint_every=2", "--set", "log_every=1"]  # fmt: skip


def test_the_command_trains_and_the_model_annotates(
    tmp_path: Path, sample: Path, yunet: Path
) -> None:
    shown = vafer("train", "--config", "quickstart", *QUICK, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "CCC" in shown.stdout
    assert "iteration 4: synthetic_test" in shown.stderr
    model = tmp_path / "runs" / "quickstart" / "model.safetensors"
    assert read_card(model).training["procedure"]["critic"] == "caf"
    table = tmp_path / "r.parquet"
    shown = vafer("annotate", sample, "--out", table, "--model", model, "--detector", yunet,
                  "--every", 10, cwd=tmp_path)  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    shown = vafer("train", "--config", "quickstart", *QUICK, cwd=tmp_path)
    assert shown.returncode == 2
    assert "holds a run already" in shown.stderr


def test_a_dry_run_prints_the_config_and_writes_nothing(tmp_path: Path) -> None:
    shown = vafer("train", "--config", "afew_va.yaml", "--set", "margin.kind=linear", "--dry-run",
                  cwd=tmp_path)  # fmt: skip
    assert shown.returncode == 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "same.yaml").write_text(shown.stdout)
    assert read_config(tmp_path / "same.yaml") == read_config("afew_va", ["margin.kind=linear"])


def test_usage_errors_exit_with_2(tmp_path: Path) -> None:
    for arguments, message in (
        (["--config", "none_such"], "no such config file"),
        (["--config", "quickstart", "--set", "lr=1"], "did you mean optimiser.lr?"),
        (["--config", "affectnet"], "data/affectnet: no such folder"),
        (["--config", "faces"], "fer2013.parquet is missing"),
    ):
        shown = vafer("train", *arguments, cwd=tmp_path)
        assert shown.returncode == 2, shown.stderr
        assert message in shown.stderr
        assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_the_iteration(tmp_path: Path) -> None:
    many = [*QUICK[:1], "iterations=100000", *QUICK[2:], "--set", "evaluate_every=100000"]
    running = subprocess.Popen(
        [sys.executable, "-m", "vafer.cli", "train", "--config", "quickstart", *many],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "runs" / "quickstart" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, shown = running.communicate(timeout=60)
    assert running.returncode == 130, shown
    assert "--resume goes on" in shown
    checkpoint = torch.load(log.parent / "checkpoints" / "last.pt", weights_only=True)
    assert checkpoint["progress"]["iteration"] == lines(log)[-1]["step"]


def test_torchrun_trains_as_one(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "train",
         "--config", "quickstart", "--out", "two", *QUICK],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "2 processes" in shown.stderr
    assert shown.stdout.count("model: ") == 1
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        *(FILES - {"predictions-held_out.png"}), "predictions-synthetic_test.png"}  # fmt: skip


def test_every_default_is_reachable() -> None:
    assert TrainConfig() == read_config("affectnet", ["seeds=[0]"])
