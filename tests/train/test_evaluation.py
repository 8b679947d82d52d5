"""Faces as a model is to see them, and what it makes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.toys import toy_faces
from train import evaluation
from train.evaluation import crops_seen, predict_faces
from vafer.model import load_model


def test_all_faces_are_seen_in_order_as_the_change_makes_them(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 10)
    model, faces = load_model(untrained), toy_faces(25)
    middles = torch.from_numpy(faces.crops)[..., 4:-4, 4:-4].float().expand(-1, 3, -1, -1)

    def darker(crops: torch.Tensor, size: int) -> torch.Tensor:
        assert crops.shape[-1] == 72  # with its border
        assert size == 64
        return crops[..., 4:-4, 4:-4] * 0.31 - 20

    batches = [*crops_seen(model, faces)]
    assert len(batches) > 1
    assert torch.equal(torch.cat(batches), middles)
    np.testing.assert_allclose(predict_faces(model, faces), model.predict(middles), atol=1e-4)
    dark = (middles * 0.31 - 20).round().clamp(0, 255)
    assert torch.equal(torch.cat([*crops_seen(model, faces, darker)]), dark)
    found = predict_faces(model, faces, darker)
    np.testing.assert_allclose(found, model.predict(dark), atol=1e-4)
    assert not np.allclose(found, model.predict(middles), atol=1e-2)
