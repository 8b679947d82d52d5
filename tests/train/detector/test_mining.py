"""What a network takes for a face in pictures without one is found, and shown more often."""

import cv2
import numpy as np
import pytest
import torch

from tests.train.detector.test_scenes import frame, portrait
from train.detector import scenes
from train.detector.material import Labelled, Material
from train.detector.mining import most_like_faces
from train.detector.network import N_ANCHORS, FaceNet, Found
from train.detector.scenes import Composer


def nothing(height: int, width: int, spot: tuple[int, int] | None = None) -> Labelled:
    """A black picture, with a white square around `spot`, x and y."""
    picture = np.zeros((height, width, 3), np.uint8)
    if spot:
        picture[spot[1] - 8 : spot[1] + 8, spot[0] - 8 : spot[0] + 8] = 255
    _, png = cv2.imencode(".png", picture)
    return Labelled(png.tobytes(), *(np.empty((0, *s), np.float32) for s in ((4,), (5, 2))),
                    np.empty(0, bool))  # fmt: skip


class TakesWhiteForAFace(FaceNet):
    """Its score is 0.5 in black, 0.98 in white, and 0.73 in mid grey."""

    def maps(self, x: torch.Tensor) -> list[Found]:
        found = []
        for stride in (8, 16, 32):
            seen = torch.nn.functional.avg_pool2d(x.mean(dim=1), stride)
            logits = (2 * (seen + 1)).flatten(1).repeat_interleave(N_ANCHORS, dim=1)
            found.append(Found(logits, torch.zeros(*logits.shape, 4), torch.zeros(0)))
        return found

    def forward(self, x: torch.Tensor) -> Found:
        return Found(torch.cat([m.logits for m in self.maps(x)], dim=1), x, x)


def test_the_place_most_like_a_face_is_found() -> None:
    pictures = [nothing(96, 160, (40, 72)), nothing(96, 160), nothing(64, 320, (232, 24))]
    found = most_like_faces(TakesWhiteForAFace(), pictures)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found[:, 0], [0.982, 0.501, 0.982], atol=2e-3)
    assert 32 / 160 <= found[0, 1] < 48 / 160
    assert 64 / 96 <= found[0, 2] < 80 / 96
    assert 224 / 320 <= found[2, 1] < 240 / 320
    assert 16 / 64 <= found[2, 2] < 32 / 64


def test_sides_that_no_stride_divides_are_filled_up() -> None:
    (found,) = most_like_faces(TakesWhiteForAFace(), [nothing(50, 70, (62, 42))])
    assert found[0] > 0.9
    assert 56 / 70 <= found[1] < 1
    assert 40 / 50 <= found[2] < 1
    # What is filled up with is mid grey, and here that is more like a face than black; cells whose
    # centre lies in it are left out.
    (found,) = most_like_faces(TakesWhiteForAFace(), [nothing(50, 70)])
    assert found[1:].max() < 1


def test_suspects_are_shown_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "PAGES", 0.0)
    monkeypatch.setattr(scenes, "CAPTIONS", 0.0)
    pictures = [nothing(64, 64), nothing(64, 64, (32, 32)), nothing(64, 64)]
    material = Material([portrait()], [frame(n_faces=1)], pictures)

    def share(suspects: np.ndarray | None) -> float:
        composer, rng = Composer(material, suspects), np.random.default_rng(0)
        return float(np.mean([composer.nothing(rng).max() > 0 for _ in range(400)]))

    assert 0.25 < share(None) < 0.42
    assert share(np.array([[0.1, 0, 0], [0.9, 0.5, 0.5], [0.1, 0, 0]])) > 0.88  # 0.83 / 0.89
    assert share(np.array([[0.9, 0, 0], [0.1, 0.5, 0.5], [0.9, 0, 0]])) < 0.05


def test_frames_without_faces_are_no_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "PAGES", 0.0)
    monkeypatch.setattr(scenes, "CAPTIONS", 0.0)
    material = Material([portrait()], [nothing(64, 64)], [nothing(64, 64, (32, 32))])
    composer, rng = Composer(material, np.array([[0.9, 0.5, 0.5]])), np.random.default_rng(0)
    assert np.mean([composer.nothing(rng).max() > 0 for _ in range(400)]) > 0.9


def test_suspects_are_moved_into_view(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MOSAICS": 0.0, "CROWDS": 0.0, "CLOSE_UPS": 0.0, "FROM_FRAMES": 0.0, "FROM_SCENERY": 1.0,
        "CAPTIONS": 0.0, "AT_SUSPECTS": 1.0, "PASTED_SHARES": (1.0, 0.0, 0.0, 0.0, 0.0),
    }.items():  # fmt: skip
        monkeypatch.setattr(scenes, name, value)
    monkeypatch.setattr(scenes._Scene, "paste_none", lambda _: None)
    material = Material([portrait()], [], [nothing(400, 400, (380, 20))])

    def share(suspects: np.ndarray | None) -> float:
        composer = Composer(material, suspects)
        made = [composer.scene(np.random.default_rng(seed), 96, 96) for seed in range(60)]
        return float(np.mean([np.ptp(scene.picture.mean(axis=2)) > 90 for scene in made]))

    assert share(np.array([[0.9, 0.95, 0.05]])) > 0.8
    assert share(None) < 0.5
