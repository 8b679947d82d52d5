"""What ships says what it is, and computes what was trained."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from train.detector.export import export
from train.detector.network import FaceNet
from train.embed import embed, main
from vafer import store
from vafer.catalogue import info
from vafer.download import sha256
from vafer.errors import ModelError, UsageError
from vafer.model import load_model, save_model, weights_sha256
from vafer.onnx_file import detector_card, onnx_weights_sha256

CUT_BY = {
    "detector": {
        "weights_sha256": onnx_weights_sha256(store.WEIGHTS / f"{store.DEFAULT_DETECTOR}.onnx")
    }
}
METRICS = {"fer_test": {"valence": {"ccc": 0.7}}}


def of(path: Path) -> dict[str, dict[str, str]]:
    """What a bench writes of the file that it scored."""
    if path.suffix == ".onnx":
        return {"candidate": {"weights_sha256": onnx_weights_sha256(path)}}
    weights = {key: value.half() for key, value in load_model(path).net.state_dict().items()}
    return {"model": {"weights_sha256": weights_sha256(weights)}, **CUT_BY}


TEXT = "# A card\n\nNot for **α** decisions.\n"


@pytest.fixture
def untrained(untrained: Path, tmp_path: Path) -> Path:
    """The untrained model, as if it were trained."""
    model, path = load_model(untrained), tmp_path / "model.safetensors"
    save_model(path, model.net, replace(model.card, training={"procedure": {"seed": 1}}))
    return path


@pytest.fixture(autouse=True)
def cards(tmp_path: Path) -> None:
    for name in ("small", "finder"):
        (tmp_path / f"{name}.md").write_text(TEXT, encoding="utf-8")


def test_a_model_is_stored_in_half_precision(untrained: Path, tmp_path: Path) -> None:
    path = embed(untrained, "small", METRICS | of(untrained), tmp_path)
    assert path == tmp_path / "small.safetensors"
    assert path.stat().st_size < 0.6 * untrained.stat().st_size
    before, after = load_model(untrained), load_model(path)
    assert (after.card.name, after.card.licence) == ("small", "Apache-2.0")
    assert after.card.metrics == METRICS | of(untrained)
    assert after.card.training == before.card.training
    assert after.card.text == TEXT
    crops = torch.rand(4, 3, 64, 64) * 255
    torch.testing.assert_close(after.predict(crops), before.predict(crops), atol=5e-3, rtol=0)


def test_a_model_keeps_the_scores_of_its_training(untrained: Path, tmp_path: Path) -> None:
    model = load_model(untrained)
    card = replace(model.card, metrics={"lfw_test": {"n_faces": 3}, "fer_test": {"n_faces": 4}})
    save_model(tmp_path / "scored.safetensors", model.net, card)
    path = embed(tmp_path / "scored.safetensors", "small", METRICS | of(untrained), tmp_path)
    expected = {"lfw_test": {"n_faces": 3}, **METRICS, **of(untrained)}
    assert load_model(path).card.metrics == expected


def test_a_detector_keeps_its_training_and_its_graph(tmp_path: Path) -> None:
    source = tmp_path / "detector.onnx"
    export(FaceNet(), source, {"training": {"steps": 3}}, 0.6)
    path = embed(source, "finder", METRICS | of(source), tmp_path)
    assert detector_card(path) == {
        "name": "finder", "licence": "Apache-2.0", "metrics": METRICS | of(source),
        "training": {"steps": 3}, "text": TEXT, "second_look": True,
        "weights_sha256": onnx_weights_sha256(source),
    }  # fmt: skip
    graphs = [onnx.load_model(file).graph.SerializeToString() for file in (source, path)]
    assert graphs[0] == graphs[1]


def test_a_card_is_renewed_in_place(untrained: Path, tmp_path: Path) -> None:
    export(FaceNet(), tmp_path / "detector.onnx", {"training": {"steps": 3}}, 0.6)
    paths = [
        embed(path, name, METRICS | of(path), tmp_path)
        for path, name in ((untrained, "small"), (tmp_path / "detector.onnx", "finder"))
    ]
    assert onnx_weights_sha256(paths[1]) == onnx_weights_sha256(tmp_path / "detector.onnx")
    before = [sha256(path) for path in paths]
    for path in paths:
        assert embed(path, path.stem, {}, tmp_path) == path
    assert [sha256(path) for path in paths] == before
    for path in paths:
        path.with_suffix(".md").write_text("# New\n")
        more = {"b": {"n": 1}} | of(path)
        assert info(str(embed(path, path.stem, more, tmp_path))).text == "# New\n"
        assert info(str(path)).metrics == {**METRICS, **more}


def test_figures_of_other_weights_are_refused(untrained: Path, tmp_path: Path) -> None:
    export(FaceNet(), tmp_path / "detector.onnx", {}, 0.6)
    path = embed(untrained, "small", {}, tmp_path)
    weights = load_model(path).card.weights_sha256
    for file, name, role, own in (
        (path, "small", "model", weights),
        (tmp_path / "detector.onnx", "finder", "candidate",
         onnx_weights_sha256(tmp_path / "detector.onnx")),
    ):  # fmt: skip
        embed(file, name, {role: {"weights_sha256": own}, **CUT_BY}, tmp_path)
        with pytest.raises(UsageError, match=f"of the weights f00, those of {file} are {own}"):
            embed(file, name, {role: {"weights_sha256": "f00"}}, tmp_path)
    with pytest.raises(UsageError, match="are of the weights None"):
        embed(path, "small", METRICS, tmp_path)
    other = of(path) | {"detector": {"name": "yunet", "weights_sha256": "f00"}}
    with pytest.raises(UsageError, match=r"of the weights f00, those of .*/vafer-faces\.onnx are"):
        embed(path, "small", other, tmp_path)
    own = {"candidate": {"weights_sha256": onnx_weights_sha256(tmp_path / "detector.onnx")}}
    for odd in ({"one_look": True}, {"every": 5}):
        with pytest.raises(UsageError, match="of one look, or not of every frame"):
            embed(tmp_path / "detector.onnx", "finder", own | odd, tmp_path)


def test_what_is_damaged_or_of_another_kind_is_not_embedded(
    untrained: Path, shared: Path, tmp_path: Path
) -> None:
    export(FaceNet(), tmp_path / "detector.onnx", {}, 0.6)
    embed(tmp_path / "detector.onnx", "finder", {}, tmp_path)
    before = (tmp_path / "finder.onnx").read_bytes()
    with pytest.raises(UsageError, match=r"finder is finder\.onnx: expected a file of that kind"):
        embed(untrained, "finder", {}, tmp_path)
    with pytest.raises(UsageError, match=r"scrfd_500m\.onnx has no card"):
        embed(shared / "models" / "scrfd_500m.onnx", "finder", {}, tmp_path)
    model = onnx.load_model(tmp_path / "detector.onnx")
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save_model(model, tmp_path / "changed.onnx")
    with pytest.raises(ModelError, match=r"changed\.onnx is damaged, or was changed"):
        embed(tmp_path / "changed.onnx", "finder", {}, tmp_path)
    assert (tmp_path / "finder.onnx").read_bytes() == before
    large = load_model(untrained)
    with torch.no_grad():
        large.net.encoder[0][0].bias[0] = 1e5
    save_model(tmp_path / "large.safetensors", large.net, large.card)
    with pytest.raises(UsageError, match="holds weights that half precision cannot"):
        embed(tmp_path / "large.safetensors", "small", {}, tmp_path)
    with pytest.raises(UsageError, match=r"the metrics are \[1\]: expected a JSON object"):
        embed(untrained, "small", [1], tmp_path)  # type: ignore[arg-type]


def test_what_has_no_card_or_is_of_another_kind_is_refused(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nameless\.md is missing: expected the card in words"):
        embed(untrained, "nameless", {}, tmp_path)
    with pytest.raises(UsageError, match=r"\.\./small is a path: expected the name"):
        embed(untrained, "../small", {}, tmp_path)
    assert not (tmp_path / "nameless.safetensors").exists()
    with pytest.raises(UsageError, match=r"expected a \.safetensors or an \.onnx file"):
        embed(tmp_path / "last.pt", "small", {}, tmp_path)


def test_what_vafer_did_not_train_is_not_given_its_licence(untrained: Path, tmp_path: Path) -> None:
    model = load_model(untrained)
    converted = replace(model.card, training={"source": "not known"})
    save_model(tmp_path / "converted.safetensors", model.net, converted)
    with pytest.raises(UsageError, match="does not say how it was trained"):
        embed(tmp_path / "converted.safetensors", "small", {}, tmp_path)


def test_metrics_that_are_no_json_are_named(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "m.txt").write_text("no JSON")
    command = ["embed", str(untrained), "vafer-alexnet112", "--metrics", str(tmp_path / "m.txt")]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 2
    assert "m.txt is no JSON (" in capsys.readouterr().err
