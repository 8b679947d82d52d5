"""A run from pictures to a model file, on a few real faces; and the pieces on the way."""

import json
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import torch

from train.config import TrainConfig
from train.data import EXPRESSION_NORMS, FaceSet, find_landmarks, load_faces
from train.loop import make_net, predict, training_steps
from train.run import run
from train.steps import Batch, regression_step
from vafer.crops import FACE_TEMPLATE, CropSpec, cut, warp
from vafer.errors import UsageError
from vafer.faces import Detector
from vafer.model import load_model

SPEC = CropSpec(size=64, grey=True)


def config(faces: Path = Path(), detector: Path = Path(), **changes: object) -> TrainConfig:
    settings = {"pool": 1, "crop": SPEC, "epochs": 1, "batch_size": 16, "bf16": False}
    return TrainConfig(faces, detector, **{**settings, **changes})


def bright_or_dark(n: int = 64) -> FaceSet:
    """Crops whose label is their brightness, which any network can learn."""
    labels = np.linspace(-1, 1, n, dtype=np.float32)
    crops = np.broadcast_to(
        (labels * 100 + 128).astype(np.uint8)[:, None, None, None], (n, 80, 80, 1)
    )
    names = np.where(labels > 0, "happy", "sad")
    return FaceSet("toy", crops.copy(), np.stack([labels, -labels], 1), names, n)


@pytest.fixture(scope="session")
def few_faces(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ../shared/faces with 48 pictures of each set."""
    folder = tmp_path_factory.mktemp("faces")
    fer = pl.scan_parquet(shared / "faces" / "fer2013.parquet")
    halves = [
        fer.filter(pl.col("split") == split).head(24).collect() for split in ("train", "test")
    ]
    pl.concat(halves).write_parquet(folder / "fer2013.parquet")
    lfw = pl.scan_parquet(shared / "faces" / "lfw_expressions.parquet").head(48).collect()
    lfw.write_parquet(folder / "lfw_expressions.parquet")
    return folder


def test_the_step_moves_encoder_and_regressor_down_the_loss() -> None:
    torch.manual_seed(0)
    settings = config()
    net = make_net(settings)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    faces = bright_or_dark(32)
    images = SPEC.normalise(torch.from_numpy(faces.crops).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
    batch = Batch(images, torch.from_numpy(faces.labels))
    net.eval()  # without dropout the loss must fall at each of these small steps
    losses = [regression_step(net, optimiser, batch, bf16=False).item() for _ in range(8)]
    assert losses[-1] < losses[0]
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)


def test_training_learns_and_repeats() -> None:
    settings = config(epochs=30, learning_rate=1e-3, warmup=5)
    ends = []
    for _ in range(2):
        net = make_net(settings)
        steps = list(training_steps(net, [bright_or_dark()], settings))
        ends.append(steps[-1].loss_av.item())
    assert ends[0] == ends[1]
    assert [s.number for s in steps] == list(range(1, 121))
    assert [s.number for s in steps if s.last_of_epoch] == list(range(4, 121, 4))
    assert steps[0].learning_rate < steps[5].learning_rate
    assert steps[-1].learning_rate < 0.01 * settings.learning_rate
    found = predict(net, bright_or_dark(), settings)
    assert np.corrcoef(found[:, 0], bright_or_dark().labels[:, 0])[0, 1] > 0.8


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    faces = bright_or_dark()
    faces.labels[:] = np.nan
    with pytest.raises(FloatingPointError, match="step 1"):
        list(training_steps(make_net(config()), [faces], config()))


def test_fewer_faces_than_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="expected at least a batch of 16"):
        list(training_steps(make_net(config()), [bright_or_dark(8)], config()))


def test_landmarks_are_in_pixels_of_the_small_picture(shared: Path, yunet: Path) -> None:
    """Found in a face shrunk to 48 pixels, they lie where they lie in the large one."""
    picture = cv2.imread(str(shared / "faces" / "six_faces.jpg"), cv2.IMREAD_COLOR_RGB)
    detector = Detector(yunet)
    faces = detector.detect(picture)
    x1, y1, x2, y2 = faces.boxes[0].astype(int)
    side = max(x2 - x1, y2 - y1) + 24
    x, y = (x1 + x2 - side) // 2, (y1 + y2 - side) // 2
    small = cv2.resize(picture[y : y + side, x : x + side], (48, 48), interpolation=cv2.INTER_AREA)
    found = find_landmarks(small, detector)
    assert found is not None
    expected = (faces.landmarks[0] - [x, y] + 0.5) * 48 / side - 0.5
    np.testing.assert_allclose(found, expected, atol=2.5)  # a face of 48 pixels is found roughly
    assert find_landmarks(np.full((48, 48, 3), 90, np.uint8), detector) is None


def test_crops_come_as_annotation_makes_them(few_faces: Path, yunet: Path, tmp_path: Path) -> None:
    detector = Detector(yunet)
    sets = load_faces(few_faces, detector, SPEC.widened(8), tmp_path)
    assert sum(len(s) for s in sets.values()) == 96
    lfw = pl.read_parquet(few_faces / "lfw_expressions.parquet")
    picture = cv2.imdecode(np.frombuffer(lfw["jpeg"][0], np.uint8), cv2.IMREAD_COLOR_RGB)
    landmarks = find_landmarks(picture, detector)
    matrix = SPEC.matrices(np.zeros((1, 4)), landmarks[None])[0]
    expected = SPEC.normalise(warp([cut(picture, matrix, 64)], 64))
    crops = np.concatenate([sets["lfw_train"].crops, sets["lfw_test"].crops])
    middle = torch.from_numpy(crops[:, 8:-8, 8:-8]).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    nearest = (SPEC.normalise(middle) - expected).abs().mean(dim=(1, 2, 3)).min()
    assert nearest < 0.02  # less than a grey level: the crop was stored in 8 bits


def test_sets_are_labelled_counted_and_cached(few_faces: Path, yunet: Path, tmp_path: Path) -> None:
    detector = Detector(yunet)
    told: list[tuple[str, int, int]] = []
    sets = load_faces(few_faces, detector, SPEC, tmp_path, lambda *args: told.append(args))
    assert {name for name, _, _ in told} == set(sets)
    for faces in sets.values():
        assert faces.crops.shape[1:] == (64, 64, 1)
        assert 0 < faces.n_detected <= len(faces)
        for label, name in zip(faces.labels, faces.expressions, strict=True):
            assert tuple(label) == pytest.approx(EXPRESSION_NORMS[name])
    told.clear()
    again = load_faces(few_faces, detector, SPEC, tmp_path, lambda *args: told.append(args))
    assert not told
    for name, faces in sets.items():
        np.testing.assert_array_equal(again[name].crops, faces.crops)


def test_no_identity_is_in_both_parts(shared: Path) -> None:
    from train.data import _is_held_out

    identities = pl.read_parquet(shared / "faces" / "lfw_expressions.parquet", columns=["identity"])
    names = identities["identity"].unique().to_list()
    held_out = [_is_held_out(name) for name in names]
    assert 0.17 < np.mean(held_out) < 0.23
    assert held_out == [_is_held_out(name) for name in names]


def test_a_run_writes_a_model_that_annotates(few_faces: Path, yunet: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    out = tmp_path / "tiny"
    path = run(config(few_faces, yunet, epochs=2), out, on_notice=notices.append)
    model = load_model(path)
    assert model.card.name == "tiny"
    assert model.card.crop == SPEC
    assert model.card.training["sets"]["fer_train"]["faces"] == 24
    assert set(model.card.metrics) == {"fer_test", "lfw_test"}
    assert json.loads((out / "scores.json").read_text()) == model.card.metrics
    assert {p.name for p in out.iterdir()} == {
        "config.json", "log.jsonl", "scores.json", "last.pt", "crops", "model.safetensors",
    }  # fmt: skip
    assert any(n.startswith("epoch 2: ") for n in notices)
    assert model.predict(torch.rand(2, 3, 64, 64) * 255).shape == (2, 2)


def test_wrong_settings_and_missing_faces_are_named(tmp_path: Path, yunet: Path) -> None:
    with pytest.raises(UsageError, match=r"fer2013\.parquet is missing"):
        load_faces(tmp_path, Detector(yunet), SPEC, tmp_path)
    with pytest.raises(UsageError, match="epochs is 0"):
        config(epochs=0)
    with pytest.raises(UsageError, match="learning_rate"):
        config(learning_rate=-1)


def test_the_template_is_where_landmarks_lie_in_fer2013(shared: Path, yunet: Path) -> None:
    """FACE_TEMPLATE is a measurement: the mean over FER2013's pictures, within 3 % of a side."""
    fer = pl.scan_parquet(shared / "faces" / "fer2013.parquet").head(300).collect()
    detector = Detector(yunet)
    found = []
    for jpeg in fer["jpeg"]:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        if (landmarks := find_landmarks(picture, detector)) is not None:
            found.append(landmarks / 48)
    assert len(found) > 270
    np.testing.assert_allclose(np.mean(found, axis=0), FACE_TEMPLATE, atol=0.03)
