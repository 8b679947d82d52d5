"""What is known by name, what a file says of itself, and the pull of the authors' pair."""

import hashlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.servers import Server, serving
from vafer import catalogue, console, pulling, remote, store
from vafer.catalogue import entries, info, short_scores
from vafer.cli import app
from vafer.convert import ENCODER, REGRESSOR
from vafer.errors import ModelError, UsageError
from vafer.model import AVNet, load_model, read_weights, save_model
from vafer.onnx_file import detector_card


def saved(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def published() -> tuple[bytes, bytes]:
    """A pair of files as the authors', of random weights."""
    torch.manual_seed(1)
    ours = AVNet("alexnet", 6).state_dict()
    encoder, regressor = (
        saved({theirs: ours[name] for theirs, name in names.items()})
        for names in (ENCODER, REGRESSOR)
    )
    return encoder, regressor


@pytest.fixture
def pair(published: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> remote.Pair:
    encoder, regressor = map(blob, published)
    pair = replace(remote.CAF_ALEXNET, encoder_blob=encoder, regressor_blob=regressor)
    for module in (store, catalogue):
        monkeypatch.setattr(module, "PAIRS", {pair.name: pair})
    return pair


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and no way out to the network."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote, "RELEASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "CAF_URL", "http://127.0.0.1:9")
    return home


@pytest.fixture
def server(
    published: tuple[bytes, bytes], pair: remote.Pair, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    with serving() as server:
        monkeypatch.setattr(remote, "CAF_URL", server.url)
        server.serve("/Encoder.t7", published[0])
        server.serve("/FC_layer.t7", published[1])
        yield server


def everything_in(folder: Path) -> list[Path]:
    """Files, and folders with nothing in them."""
    return [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]


def test_the_authors_pair_is_pulled_once_with_a_notice(server: Server, home: Path) -> None:
    notices: list[str] = []
    path = store.find_model("caf-alexnet", on_notice=notices.append)
    assert path == home / ".cache" / "vafer" / "caf-alexnet" / "caf-alexnet.safetensors"
    assert everything_in(home) == [path]
    assert store.find_model("caf-alexnet", on_notice=notices.append) == path
    assert server.asked == ["/Encoder.t7", "/FC_layer.t7"]
    assert len(notices) == 1
    assert "not stated by its authors" in notices[0]
    assert f"{server.url}/Encoder.t7" in notices[0]
    card = load_model(path).card
    assert card.name == "caf-alexnet"
    assert store.pull_named("caf-alexnet", on_notice=notices.append) == (path, False)


@pytest.mark.parametrize("name", ["/Encoder.t7", "/FC_layer.t7"])
def test_half_a_pair_leaves_nothing(server: Server, home: Path, name: str) -> None:
    status, headers, body = server.answers[name]
    server.serve(name, body[:-1] + b"!")
    with pytest.raises(ModelError) as caught:
        store.find_model("caf-alexnet")
    for part in (f"{server.url}{name}: sent git blob id", "Nothing was kept", "models convert"):
        assert part in str(caught.value)
    assert everything_in(home / ".cache" / "vafer") == []
    server.answers[name] = (status, headers, body)
    assert store.find_model("caf-alexnet").is_file()


def test_an_interrupt_between_the_two_leaves_nothing(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pulling.download

    def once(file: remote.RemoteFile, path: Path, on_bytes: Callable[[int], None]) -> None:
        if file.url.endswith("FC_layer.t7"):
            raise KeyboardInterrupt
        real(file, path, on_bytes)

    monkeypatch.setattr(pulling, "download", once)
    with pytest.raises(KeyboardInterrupt):
        store.find_model("caf-alexnet")
    assert everything_in(home / ".cache" / "vafer") == []


def test_what_a_killed_pull_left_goes_with_the_next(server: Server, home: Path) -> None:
    cache = home / ".cache" / "vafer"
    for name, age_s in ((".caf-alexnet-old", 2 * 24 * 3600), (".caf-alexnet-new", 60)):
        (cache / name).mkdir(parents=True)
        (cache / name / "Encoder.t7").write_bytes(b"half")
        os.utime(cache / name, (time.time() - age_s,) * 2)
    gone = cache / ".caf-alexnet-gone"  # as one that another process removes at this moment
    gone.symlink_to("nowhere")
    path = store.find_model("caf-alexnet")
    new = cache / ".caf-alexnet-new"  # which may be at work
    assert {*cache.iterdir()} == {path.parent, new, gone}


def test_a_long_download_says_how_far_it_is(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vafer.pulling.TOLD_EVERY", 4_500_000)
    monkeypatch.setattr("vafer.download.CHUNK_BYTES", 1_000_000)
    notices: list[str] = []
    store.find_model("caf-alexnet", on_notice=notices.append)
    assert isinstance(notices[0], pulling.Licence)
    assert notices[1:] == ["caf-alexnet: 5 of 12 MB", "caf-alexnet: 10 of 12 MB"]  # of both files


def test_a_pair_that_an_older_vafer_converted_is_refused(server: Server, home: Path) -> None:
    path = store.find_model("caf-alexnet")
    model = load_model(path)
    save_model(path, model.net, replace(model.card, crop=replace(model.card.crop, kind="box")))
    with pytest.raises(ModelError, match=r"an older vafer made it, with another crop\. Delete it"):
        store.find_model("caf-alexnet")


def test_two_pulls_at_once_do_not_meet(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=60)
    real = pulling._make

    def make_together(*args: object) -> None:
        together.wait()
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pulling, "_make", make_together)
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(store.find_model, ["caf-alexnet"] * 2))
    assert everything_in(home) == [*paths]


def test_a_damaged_cached_model_is_refused_and_listed(
    server: Server, pair: remote.Pair, home: Path
) -> None:
    path = store.find_model("caf-alexnet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"caf-alexnet\.safetensors.*Delete it and run"):
        store.find_model("caf-alexnet")
    (found,) = (entry for entry in entries() if entry.name == "caf-alexnet")
    assert found.where == "cached"
    assert "Delete it" in str(found.problem)


def test_a_cached_model_with_a_flipped_weight_is_refused(
    server: Server, pair: remote.Pair, home: Path
) -> None:
    path = store.find_model("caf-alexnet")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"its weights have SHA-256 .*Delete it and run"):
        store.find_model("caf-alexnet")
    with pytest.raises(ModelError, match="damaged, or was changed: its weights have SHA-256"):
        load_model(path)


def test_a_cached_model_that_cannot_be_checked_is_refused(
    server: Server, pair: remote.Pair
) -> None:
    path = store.find_model("caf-alexnet")
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["vafer"])
    del card["weights_sha256"]  # as in files of development versions
    save_file(read_weights(path), path, {"vafer": json.dumps(card)})
    assert not load_model(path).card.weights_sha256
    with pytest.raises(ModelError, match=r"does not say what SHA-256 .*Delete it and run"):
        store.find_model("caf-alexnet")


def test_another_model_in_the_place_of_a_cached_one_is_named(
    server: Server, pair: remote.Pair, untrained: Path
) -> None:
    path = store.find_model("caf-alexnet")
    model = load_model(untrained)
    save_model(path, model.net, replace(model.card, name="another"))
    with pytest.raises(ModelError, match=r"calls itself another, made from git blobs none, exp"):
        store.find_model("caf-alexnet")


def test_a_cached_model_of_other_weights_is_refused(
    server: Server, pair: remote.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.find_model("caf-alexnet")
    monkeypatch.setattr(store, "PAIRS", {pair.name: replace(pair, encoder_blob="0" * 40)})
    with pytest.raises(ModelError, match="made from git blobs"):
        store.find_model("caf-alexnet")


def test_entries_are_all_names_and_the_defaults_are_marked(home: Path) -> None:
    found = entries()
    assert {entry.name for entry in found} == {
        *store.embedded_models(),
        *store.embedded_detectors(),
        *remote.PAIRS,
        *remote.PACKS,
    }
    by_name = {entry.name: entry for entry in found}
    default = by_name[store.DEFAULT_MODEL]
    assert default.is_default
    assert (default.kind, default.where, default.licence) == ("model", "embedded", "Apache-2.0")
    assert default.scores[0].startswith("CCC 0.")
    assert not any(entry.is_default for entry in found if entry.where != "embedded")
    assert by_name["buffalo_s"].where == "remote"
    assert by_name["buffalo_s"].n_bytes == 127_607_557
    assert "non-commercial" in by_name["buffalo_s"].licence
    assert everything_in(home) == []


def test_damaged_files_do_not_break_the_list(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "bad.safetensors").write_bytes(b"no model")
    (weights / "bad-faces.onnx").write_bytes(b"no graph")
    monkeypatch.setattr(store, "WEIGHTS", weights)
    pack = home / ".cache" / "vafer" / "buffalo_l" / "det_10g.onnx"
    pack.parent.mkdir(parents=True)
    pack.write_bytes(b"cut off")
    problems = {entry.name: str(entry.problem) for entry in entries() if entry.problem}
    assert problems.keys() == {"bad", "bad-faces", "buffalo_l"}
    assert "Delete it" in problems["buffalo_l"]


def test_info_of_a_model_by_name_file_and_run_folder(untrained: Path, tmp_path: Path) -> None:
    found = info(store.DEFAULT_MODEL)
    assert found.facts["parameters"] == "2,535,834, stored as float16"
    assert found.facts["SHA-256"] == store.sha256(store.find_model(None))
    assert found.facts["of weights"] == found.metrics["model"]["weights_sha256"]
    detector = info(store.DEFAULT_DETECTOR)
    assert detector.facts["of weights"] == detector.metrics["candidate"]["weights_sha256"]
    assert detector.facts["of weights"] == found.metrics["detector"]["weights_sha256"]
    assert "used when none is named" in found.facts["where"]
    assert found.metrics
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(untrained.read_bytes())
    for name in (untrained, run):
        facts = info(str(name)).facts
        assert facts["name"] == "untrained"
        assert facts["input"].startswith("64 × 64 pixels, RGB, aligned")


def test_info_of_detectors(shared: Path, yunet: Path, tmp_path: Path) -> None:
    facts = info(str(yunet)).facts
    assert facts["family"].startswith("YuNet")
    assert (facts["input"], facts["landmarks"]) == ("any size", "five")
    assert facts["licence"] == "not stated in the file"
    pack = remote.PACKS["buffalo_s"]  # it is the very file of the pack, by whatever name
    licence = info(str(shared / "models" / "scrfd_500m.onnx")).facts["licence"]
    assert licence == f"{pack.licence} ({pack.terms})"
    model = onnx.load(shared / "models" / "scrfd_500m.onnx")
    card = {"name": "ours", "licence": "Apache-2.0", "metrics": {"held_out": {"recall": 0.97}}}
    onnx.helper.set_model_props(model, {"vafer": json.dumps(card)})
    path = tmp_path / "ours.onnx"
    onnx.save(model, path)
    found = info(str(path))
    assert found.facts["family"].startswith("SCRFD")
    assert (found.facts["name"], found.facts["licence"]) == ("ours", "Apache-2.0")
    assert found.metrics == card["metrics"]
    for text in ("not json", "[1]"):
        onnx.helper.set_model_props(model, {"vafer": text})
        onnx.save(model, path)
        with pytest.raises(ModelError, match="its card is"):
            detector_card(path)


def test_the_card_in_words(shared: Path) -> None:
    shown = CliRunner().invoke(app, ["models", "info", store.DEFAULT_MODEL, "--card"])
    assert shown.exit_code == 0
    assert shown.output.strip() == info(store.DEFAULT_MODEL).text.strip()
    assert "add --card" in CliRunner().invoke(app, ["models", "info", store.DEFAULT_MODEL]).output
    yunet = str(shared / "models" / "yunet_n_dynamic.onnx")
    assert "add --card" not in CliRunner().invoke(app, ["models", "info", yunet]).output
    refused = CliRunner().invoke(app, ["models", "info", yunet, "--card"])
    assert refused.exit_code == 2
    assert "no card in words" in refused.output


def test_a_foreign_card_can_neither_move_the_cursor_nor_end_the_command(
    shared: Path, tmp_path: Path
) -> None:
    model, path = onnx.load(shared / "models" / "scrfd_500m.onnx"), tmp_path / "evil.onnx"
    card = {
        "name": "\x1b[1m",
        "text": "# \x1b[31mred\x1b]0;title\x07\nsecond",
        "metrics": {"\x1b": 1},
    }
    onnx.helper.set_model_props(model, {"vafer": json.dumps(card)})
    onnx.save(model, path)
    for options in ((), ("--card",)):
        shown = CliRunner().invoke(app, ["models", "info", str(path), *options])
        assert shown.exit_code == 0
        assert "\x1b" not in shown.output
    assert "\\x1b[31mred" in shown.output
    assert shown.output.endswith("\nsecond\n")
    for wrong in ({"training": [1, 2]}, {"metrics": "x"}, {"text": 7}):
        onnx.helper.set_model_props(model, {"vafer": json.dumps(wrong)})
        onnx.save(model, path)
        refused = CliRunner().invoke(app, ["models", "info", str(path)])
        assert refused.exit_code == 2
        assert f"{next(iter(wrong))} in its card is" in refused.output


def test_a_card_is_wrapped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=80, soft_wrap=True)
    monkeypatch.setattr(console, "stdout", shown)
    console.show_card(info(store.DEFAULT_DETECTOR))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.file.getvalue())
    assert max(map(len, plain.splitlines())) <= 80
    assert "Do not use it to watch people or to decide anything about a person." in " ".join(
        plain.split()
    )


def test_info_of_what_is_not_here_says_what_pull_would_do(home: Path) -> None:
    facts = info("buffalo_s").facts
    assert facts["to pull"] == "vafer models pull buffalo_s"
    assert remote.PACKS["buffalo_s"].archive_sha256 in facts["buffalo_s.zip"]
    facts = info("caf-alexnet").facts
    assert "git blob id 0682ae01d35b2bd13c64d78a92e93032279004a7" in facts["Encoder.t7"]
    assert "not stated by its authors" in facts["licence"]
    assert everything_in(home) == []
    with pytest.raises(UsageError, match=r"nonesuch: no such file.*buffalo_s"):
        info("nonesuch")
    with pytest.raises(UsageError, match=r"^'': no such file"):
        info("")
    with pytest.raises(UsageError, match="cannot be read: file name too long"):
        info("x" * 300)


def test_info_of_a_file_by_its_ending(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "det.ONNX").write_bytes((shared / "models" / "scrfd_500m.onnx").read_bytes())
    assert info(str(tmp_path / "det.ONNX")).facts["kind"] == "detector"
    (tmp_path / "det").write_bytes((tmp_path / "det.ONNX").read_bytes())
    assert info(str(tmp_path / "det")).facts["kind"] == "detector"
    (tmp_path / "mine").write_bytes(store.find_model(None).read_bytes())
    assert info(str(tmp_path / "mine")).facts["kind"] == "model"
    (tmp_path / "Encoder.t7").touch()
    with pytest.raises(UsageError, match=r"Encoder\.t7: PyTorch's file.*vafer models convert"):
        info(str(tmp_path / "Encoder.t7"))


def test_without_a_home_nothing_is_cached_and_nothing_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = [entry for entry in entries() if entry.where != "embedded"]
    assert {(entry.where, entry.problem) for entry in found} == {("remote", None)}


def test_short_scores() -> None:
    metrics = {
        "a": {"valence": {"ccc": 0.5}, "arousal": {"ccc": None}},
        "b": {"recall": 0.9712, "false faces": 2, "detail": {}},
        "c": {"text": "x"},
        "n": 7,
    }
    assert list(short_scores(metrics)) == [
        "CCC 0.50 – a", "recall 0.971 b", "n 7",
    ]  # fmt: skip


def test_of_a_detector_what_matters_is_told() -> None:
    metrics = {
        "held out": {"faces": 337, "mean_iou": 0.87, "recall": 0.893},
        "no_face.mp4": {"pictures": 95, "false_per_100": 1.05},
        "other": {"faces": 2, "size": 7.5, "least": 3},
    }
    assert list(short_scores(metrics)) == [
        "recall 0.893 held out", "false 1.05 no_face.mp4", "faces 2, size 7.5 other",
    ]  # fmt: skip
