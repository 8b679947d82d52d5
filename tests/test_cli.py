"""The command line as a user meets it: help, exit codes, what goes to stdout and what to stderr."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import cv2
import polars as pl
import pytest
import skimage
from rich.console import Console
from typer.testing import CliRunner

import vafer
from vafer import cli, console, remote, store
from vafer.annotation import Progress
from vafer.catalogue import Entry, entries
from vafer.cli import app

runner = CliRunner()


def run(*arguments: object) -> tuple[int, str, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def options(untrained: Path, yunet: Path) -> list[object]:
    return ["--model", untrained, "--detector", yunet]


@pytest.mark.parametrize("command", [["annotate"], ["models"], ["models", "list"]])
def test_help_and_version_need_no_heavy_import(command: list[str]) -> None:
    code = (
        "import sys; from vafer.cli import app\n"
        f"try: app({[*command, '--help']})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'cv2', 'polars', 'pyarrow', 'av', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.endswith("[]\n")
    assert run("--version") == (0, f"vafer {vafer.__version__}\n", "")


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "vafer", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == f"vafer {vafer.__version__}\n"


def test_a_run_prints_a_summary(sample: Path, options: list[object], tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    code, stdout, stderr = run("annotate", sample, "--out", out, "--every", 10, *options)
    assert code == 0
    assert stderr == ""
    assert "frames" in stdout
    assert "80.0% with a face" in stdout
    assert f"table: {out}\ntable of videos: {tmp_path / 'r.videos.parquet'}\n" in stdout
    assert len(pl.read_parquet(out)) == 5
    again = run("annotate", sample, "--out", out, "--every", 10, *options)
    assert again[0] == 0
    assert "1 finished by an earlier run" in again[1]
    assert "other inputs" not in again[1]
    other = tmp_path / "other.mp4"
    other.symlink_to(sample)
    code, stdout, _ = run("annotate", other, "--out", out, "--every", 10, *options)
    assert code == 0
    assert "1 of an earlier run with other inputs" in stdout
    assert {*pl.read_parquet(out)["video"]} == {"other.mp4", sample.name}


def test_a_single_picture_has_no_time(options: list[object], tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    cv2.imwrite(str(tmp_path / "face.jpg"), skimage.data.astronaut()[..., ::-1])
    code, _, stderr = run("annotate", tmp_path / "face.jpg", "--out", out, *options)
    assert code == 0, stderr
    (row,) = pl.read_parquet(out).iter_rows(named=True)
    assert (row["video"], row["frame_index"], row["pts"], row["time_s"]) == (
        "face.jpg", 0, None, None,
    )  # fmt: skip
    (video,) = pl.read_parquet(out.with_name("r.videos.parquet")).iter_rows(named=True)
    assert (video["status"], video["decoder"], video["fps"]) == ("done", "pictures", None)


def test_outputs_that_differ_in_case_alone_are_two(
    sample: Path, options: list[object], tmp_path: Path
) -> None:
    for name, n_frames in (("r.parquet", 5), ("r.PARQUET", 3)):
        every = -(-50 // n_frames)
        code, *_ = run("annotate", sample, "--out", tmp_path / name, "--every", every, *options)
        assert code == 0
    for name, n_frames in (("r.videos.parquet", 5), ("r.videos.PARQUET", 3)):
        assert pl.read_parquet(tmp_path / name)["n_frames_analysed"].to_list() == [n_frames]


def test_quiet_shows_problems_only(sample: Path, options: list[object], tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "r.parquet", "--end", 0.2, "--quiet", *options)
    assert run("annotate", sample, *arguments) == (0, "", "")
    (tmp_path / "broken.mp4").write_text("no video")
    code, stdout, stderr = run("annotate", sample, tmp_path / "broken.mp4", *arguments)
    assert (code, stdout) == (1, "")
    assert stderr.startswith("failed: ")
    assert "broken.mp4" in stderr
    assert stderr.count("\n") == 1


def test_nothing_between_start_and_end_is_said(
    sample: Path, options: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    code, stdout, _ = run("annotate", sample, "--out", out, "--start", 60, *options)
    assert code == 0
    assert "empty: astronaut.mp4" in stdout


@pytest.mark.parametrize("out", ["", "r.csv", "r.parquet.gz"])
def test_an_output_that_nobody_means_is_refused(
    sample: Path, options: list[object], tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run("annotate", sample, "--out", out, *options)
    assert code == 2
    assert "NAME.parquet" in stderr
    assert not list(tmp_path.iterdir())


def test_odd_names_on_a_narrow_stdout(tmp_path: Path, options: list[object]) -> None:
    broken = tmp_path / "sm\N{GRINNING FACE}le\n\x1b[2J.mp4"
    broken.write_text("no video")
    command = [
        sys.executable,
        "-m",
        "vafer.cli",
        "annotate",
        broken,
        "--out",
        tmp_path / "o",
        *options,
    ]
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 1
    assert rb"le\n\x1b[2J.mp4" in done.stdout
    assert b"Traceback" not in done.stderr


def test_ctrl_c_while_loading_quits_at_once(sample: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from vafer import cli\n"
        "class Finder:\n"
        "    def find_spec(self, *args): os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", code, "annotate", str(sample), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 130
    assert "interrupted before anything was done" in done.stderr
    assert not list(tmp_path.iterdir())


def test_some_failed_is_exit_1_and_the_rest_is_written(
    sample: Path, options: list[object], tmp_path: Path
) -> None:
    broken = tmp_path / "broken[1].mp4"
    broken.write_text("no video")
    out = tmp_path / "r.parquet"
    code, stdout, _ = run("annotate", sample, broken, "--out", out, "--end", 0.2, *options)
    assert code == 1
    assert f"failed: {broken}: no video container" in stdout
    code, stdout, _ = run("annotate", sample, "--out", out, "--end", 0.2, *options)
    assert code == 0  # nothing of this run failed
    assert f"failed (of an earlier run with other inputs): {broken}: no video" in stdout
    assert pl.read_parquet(out)["video"].unique().to_list() == ["astronaut.mp4"]


def test_bad_usage_is_exit_2_and_does_nothing(
    sample: Path, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "r.parquet"
    for arguments in (
        [tmp_path / "missing.mp4", *options],
        [sample, *options, "--device", "tpu"],
        [sample, *options, "--start", 5, "--end", 2],
        [sample, *options, "--fps", 0],
        [sample, *options, "--shard", "3/2"],
        [sample, "--model", "nonesuch", "--detector", "nonesuch"],
    ):
        code, stdout, stderr = run("annotate", *arguments, "--out", out)
        assert code == 2, stderr
        assert stderr.startswith("error: ")
        assert stdout == ""
    bounds = {"--every": 0, "--start": -1, "--end": -1, "--det-size": 5, "--min-face": -3}
    for option, value in bounds.items():
        code, _, stderr = run("annotate", sample, "--out", out, option, value)
        assert code == 2
        assert f"'{option}'" in stderr
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(store, "DEFAULT_DETECTOR", "gone")
    code, _, stderr = run("annotate", sample, "--out", out)
    assert code == 2
    assert "--detector" in stderr
    assert "buffalo_l" in stderr
    assert not out.parent.exists()


def test_an_output_that_cannot_be_written_is_exit_2_before_any_work(
    sample: Path, options: list[object], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, _, stderr = run("annotate", sample, "--out", tmp_path / "file", *options)
    assert code == 2
    assert stderr.startswith("error: ")  # before models are chosen, which would be said
    assert "is a file and no .parquet" in stderr
    code, _, stderr = run("annotate", sample, "--out", tmp_path / "file" / "r.parquet", *options)
    assert code == 2
    assert re.search(r"cannot be written: not a directory \([^)]*/file\)\. Give", stderr)
    (tmp_path / "r.parquet.parts").touch()
    code, _, stderr = run("annotate", sample, "--out", tmp_path / "r.parquet", *options)
    assert code == 2
    assert re.search(
        r"r\.parquet cannot be written: file exists \([^)]*r\.parquet\.parts\)", stderr
    )


def test_a_disk_that_fills_up_is_exit_1_and_keeps_what_is_finished(
    sample: Path, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).symlink_to(sample)
    real = Path.replace

    def full(self: Path, target: Path) -> Path:
        if list(target.parent.glob("*.parquet")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    out = tmp_path / "r.parquet"
    arguments = ("annotate", videos, "--out", out, "--end", 0.2, *options)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        code, _, stderr = run(*arguments)
    assert code == 1
    assert "No space left" in stderr
    assert not list(tmp_path.rglob("*.tmp"))
    code, stdout, _ = run(*arguments)
    assert code == 0
    assert "1 finished by an earlier run" in stdout


# Sends itself what Ctrl-C sends, as soon as the first recording is finished.
INTERRUPTED = """
import os, signal, sys
from vafer import cli, output
real = output.Output.done
def done(self, row):
    real(self, row)
    os.kill(os.getpid(), signal.SIGINT)
output.Output.done = done
cli.main()
"""


def test_ctrl_c_keeps_what_is_finished(sample: Path, options: list[object], tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).symlink_to(sample)
    out = tmp_path / "r.parquet"
    command = [sys.executable, "-c", INTERRUPTED, "annotate", videos, "--out", out, *options]
    process = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert process.returncode == 130
    assert "interrupted" in process.stderr
    assert len(list((tmp_path / "r.parquet.parts").glob("*.parquet"))) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert not out.exists()


def test_progress_shows_videos_speed_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    shown = Console(file=StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "stderr", shown)
    with console.progress_display(quiet=False) as show:
        show(Progress(0.25, "a[1].mp4", 100, 100, 1, 4))
    text = shown.file.getvalue()
    assert "1/4 videos" in text
    assert "25%" in text
    assert "a[1].mp4" in text
    with console.progress_display(quiet=True) as show:
        show(Progress(0.25, "a.mp4", 100, 100, 1, 4))
    assert shown.file.getvalue() == text


def test_a_long_name_leaves_progress_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    shown = Console(file=StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "stderr", shown)
    with console.progress_display(quiet=False) as show:
        show(Progress(0.25, f"{200 * 'long'}.mp4", 100, 100, 1, 4))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.file.getvalue())
    lines = [line for line in re.split(r"[\r\n]", text) if "long" in line]
    assert lines
    assert all("1/4 videos" in line and "25%" in line and len(line) <= 80 for line in lines)


def test_importing_starts_no_program(tmp_path: Path) -> None:
    """One that takes hold of the terminal would stop a run in the background."""
    ffmpeg, started = tmp_path / "ffmpeg", tmp_path / "started"
    ffmpeg.write_text(f"#!/bin/sh\ntouch {started}\n")
    ffmpeg.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = [sys.executable, "-c", "import vafer.annotation, vafer.cuts"]
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True)
    assert not started.exists()
    subprocess.run(["ffmpeg"], env={**os.environ, "PATH": path}, check=True)
    assert started.exists()


def test_an_interrupt_that_was_swallowed_strikes_with_the_next_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception in a destructor, such as decord's, is printed and forgotten."""
    monkeypatch.setattr(cli, "_interrupted", False)
    before = signal.signal(signal.SIGINT, cli._quit_at_once)
    try:
        cli._interrupts_raise()
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            cli._interrupts_raise()
    finally:
        signal.signal(signal.SIGINT, before)


def test_models_are_listed_one_a_line_where_it_is_piped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    code, stdout, stderr = run("models", "list")
    assert (code, stderr) == (0, "")
    lines = {line.split()[0]: line for line in stdout.splitlines()}
    assert "embedded" in lines[store.DEFAULT_MODEL]
    assert f"{store.DEFAULT_MODEL} *" in lines[store.DEFAULT_MODEL]
    assert "recall 0." in lines[store.DEFAULT_DETECTOR]
    assert "false 0 no_face.mp4" in lines[store.DEFAULT_DETECTOR]
    assert len(stdout.splitlines()) == 1 + len(entries()) + 4  # what an asterisk and scores mean
    assert "288.6 MB  non-commercial research only" in lines["buffalo_l"]
    assert "not stated by its authors; ask them" in lines["caf-alexnet"]


ENTRIES = [
    Entry("vafer-alexnet112", "model", "embedded", 5_100_000, "Apache-2.0",
          ("CCC 0.75 0.57 fer_test", "CCC 0.80 0.78 lfw_test"), is_default=True),
    Entry("buffalo_l", "detector", "remote", 288_600_000, "non-commercial research only"),
    Entry("buffalo_s", "detector", "cached", 8, "[x]", problem="it is \x1b[2J[broken]"),
]  # fmt: skip


def test_models_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=StringIO(), force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(console, "stdout", shown)
    console.show_entries(ENTRIES)
    text = shown.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    assert "cached, damaged" in text
    assert "\nvafer-alexnet112\n  CCC 0.75 0.57 fer_test\n  CCC 0.80 0.78 lfw_test\n" in text
    assert "[broken]" in text
    assert "* used when none is named" in text


def test_models_piped_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_entries(ENTRIES)
    header, first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "where", "size", "licence", "scores"]
    assert first.endswith("CCC 0.75 0.57 fer_test; CCC 0.80 0.78 lfw_test")
    assert second.split()[:3] == ["buffalo_l", "detector", "remote"]
    assert "cached, damaged" in third


def test_info_shows_intervals_and_the_length_of_long_lists(untrained: Path, tmp_path: Path) -> None:
    from vafer.model import ModelCard, load_model, save_model

    model = load_model(untrained)
    training = {"subjects_sha256": ["0" * 64] * 1234, "sets": {"train": {"faces": 28709}}}
    metrics = {
        "held_out": {"valence": {"ccc": 0.51234, "ccc_ci": [0.49, 0.53], "pcc": None}},
        "by_group": [{"CCC": [0.5, 0.4, 0.6], "faces": 1200, "group": "grey", "persons": None}],
    }
    card = ModelCard("mine[1]", "alexnet", 1, model.card.crop, training, metrics, "CC0-1.0")
    save_model(tmp_path / "m.safetensors", model.net, card)
    code, stdout, _ = run("models", "info", tmp_path / "m.safetensors")
    assert code == 0
    for line in (
        "name        mine[1]",
        "licence     CC0-1.0",
        "  subjects_sha256  1,234 values",
        "    train  faces 28,709",
        "    valence  ccc 0.512 [0.49, 0.53], pcc none",
        "  by_group\n    group grey, CCC [0.5, 0.4, 0.6], faces 1,200",
    ):
        assert f"{line}\n" in stdout
    assert run("models", "info", "nonesuch")[0] == 2
    save_model(tmp_path / "m.safetensors", model.net, replace(card, text="# In words"))
    _, stdout, _ = run("models", "info", tmp_path / "m.safetensors")
    assert "ccc 0.512" in stdout
    assert "by_group" not in stdout  # which the card has


def test_pull_says_what_need_not_be_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(remote, "RELEASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    code, stdout, _ = run("models", "pull", store.DEFAULT_MODEL)
    assert (code, "embedded" in stdout) == (0, True)
    code, stdout, stderr = run("models", "pull", "nonesuch")
    assert (code, stdout) == (2, "")
    assert "caf-alexnet (12 MB), buffalo_l (289 MB)" in stderr
    code, stdout, stderr = run("models", "pull", "buffalo_s")
    assert (code, stdout) == (2, "")
    assert "non-commercial research only" in stderr.splitlines()[0]
    assert "Nothing was kept" in stderr


# Sends itself what Ctrl-C sends, as soon as the download has begun.
INTERRUPTED_PULL = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored where tests run
from vafer import cli, pulling
def download(file, path, on_bytes):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGINT)
pulling.download = download
cli.main()
"""


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_on_the_way_that_is_interrupted_keeps_nothing(
    sample: Path, tmp_path: Path, quiet: tuple[str, ...], number: signal.Signals
) -> None:
    code = INTERRUPTED_PULL.replace("(), signal.SIGINT", f"(), {int(number)}")
    named = ["--detector", "buffalo_s", "--out", str(tmp_path / "r.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", code, "annotate", str(sample), *named, *quiet],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 130
    assert "non-commercial research only" in done.stderr.splitlines()[0]  # even with --quiet
    assert "error: interrupted" in done.stderr
    assert list((tmp_path / "cache" / "vafer").iterdir()) == []


def test_training_tells_the_licence_of_its_detector_even_if_kept_quiet(
    shared: Path, tmp_path: Path
) -> None:
    named = ["--set", f"data.root={shared / 'faces'}", "--set", "data.detector=buffalo_s"]
    command = ["train", "--config", "faces", *named, "--out", str(tmp_path / "run"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_PULL, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 130
    assert "non-commercial research only" in done.stderr.splitlines()[0]
    assert list((tmp_path / "cache" / "vafer").iterdir()) == []


def test_ctrl_c_in_a_pull_keeps_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_PULL, "models", "pull", "buffalo_s"],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 130
    assert "interrupted; nothing was kept" in done.stderr
    assert list((tmp_path / "cache" / "vafer").iterdir()) == []


def test_convert_writes_a_model_and_refuses_other_files(untrained: Path, tmp_path: Path) -> None:
    import torch

    from vafer.convert import ENCODER, REGRESSOR
    from vafer.model import AVNet, read_card

    ours = AVNet("alexnet", 6).state_dict()
    files = []
    for name, part in (("Encoder.t7", ENCODER), ("FC_layer.t7", REGRESSOR)):
        files.append(tmp_path / name)
        torch.save({theirs: ours[own] for theirs, own in part.items()}, files[-1])
    out = tmp_path / "caf.safetensors"
    assert run("models", "convert", *files, "--out", out) == (0, f"model: {out}\n", "")
    assert read_card(out).name == "caf"
    code, stdout, stderr = run("models", "convert", *files, "--out", out)
    assert (code, stdout) == (2, "")
    assert "is there already" in stderr
    assert (
        run("models", "convert", untrained, files[1], "--out", tmp_path / "x.safetensors")[0] == 2
    )


def test_a_notice_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_notice("a decoder said \x1b[2J")
    assert "\x1b[2J" not in capsys.readouterr().err


def test_a_notice_keeps_its_lines_and_nothing_else_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    monkeypatch.setattr(console, "stderr", Console(stderr=True))
    console.show_notice("data:\n  dataset: faces\x1b[31m")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "data:"
    assert second.startswith("  dataset: faces")
    assert "\x1b" not in second
