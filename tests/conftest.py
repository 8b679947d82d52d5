"""What the tests share: where real recordings, detectors and faces lie, a model, a recording."""

import os
from pathlib import Path

import pytest
import torch

from vafer.crops import CropSpec
from vafer.model import AVNet, ModelCard, save_model
from vafer.sample import write_sample

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real recordings, detectors and faces beside the checkout.

    It is not part of the project. Continuous integration has it and fails without it; elsewhere the
    tests that need it are skipped.
    """
    if not (SHARED / "models").is_dir():
        reason = f"{SHARED} with models/, videos/ and faces/ is not there"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return SHARED


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose network is as it was initialised: repeatable values that mean nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "untrained.safetensors"
    card = ModelCard("untrained", "alexnet", 1, CropSpec(size=64))
    net = AVNet("alexnet", 1).eval()
    with torch.no_grad():  # otherwise its values hardly vary from face to face
        net.regressor[-1].weight *= 150
        net.regressor[-1].bias -= net(torch.zeros(1, 3, 64, 64))[0]
    save_model(path, net, card)
    return path


@pytest.fixture(scope="session")
def yunet(shared: Path) -> Path:
    return shared / "models" / "yunet_n_dynamic.onnx"


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, 50 frames, one face that is gone in the last twelve."""
    return write_sample(tmp_path_factory.mktemp("sample") / "astronaut.mp4", seconds=2)
