"""The network's size, its file, and what a file that is none of ours gets told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vafer.crops import CropSpec
from vafer.errors import ModelError
from vafer.model import (
    AVNet,
    Model,
    ModelCard,
    load_model,
    read_card,
    read_weights,
    save_model,
    weights_sha256,
)

CARD = ModelCard(
    name="tiny",
    backbone="alexnet",
    pool=1,
    crop=CropSpec(size=64, grey=True),
    training={"sets": ["none"], "folds": [1]},
    metrics={"valence": {"ccc": 0.5}},
    licence="Apache-2.0",
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "tiny.safetensors", AVNet("alexnet", 1), CARD)
    return tmp_path / "tiny.safetensors"


# The paper: 3.0 M (AlexNet, tuned) and 10 M (ResNet18) without critic. By hand: AlexNet's features
# have 2,469,696 parameters and ResNet18 without its last layer 11,176,512; the regressor adds
# 64 (n + 1) + 8 · 65 + 2 · 9.
@pytest.mark.parametrize(
    ("backbone", "pool", "n_parameters"),
    [
        ("alexnet", 6, 2_469_696 + 64 * 9217 + 520 + 18),
        ("resnet18", 1, 11_176_512 + 64 * 513 + 520 + 18),
    ],
)
def test_parameter_counts(backbone: str, pool: int, n_parameters: int) -> None:
    net = AVNet(backbone, pool)
    assert sum(p.numel() for p in net.parameters()) == n_parameters


@pytest.mark.parametrize(("size", "pool"), [(224, 6), (112, 2), (64, 1)])
def test_the_pool_leaves_the_feature_map_of_its_input_as_it_is(size: int, pool: int) -> None:
    net = AVNet("alexnet", pool).eval()
    x = torch.randn(2, 3, size, size)
    features = net.encoder[0](x)
    assert features.shape[-2:] == (pool, pool)
    torch.testing.assert_close(net.encoder(x), features.flatten(1))
    assert net(x).shape == (2, 2)


def test_a_file_rebuilds_its_model(saved: Path) -> None:
    model = load_model(saved)
    card = replace(CARD, weights_sha256=weights_sha256(read_weights(saved)))
    assert model.card == read_card(saved) == card
    torch.manual_seed(0)
    fresh = Model(AVNet("alexnet", 1), CARD)
    crops = torch.rand(3, 3, 64, 64) * 255
    torch.testing.assert_close(model.predict(crops), fresh.predict(crops))
    assert model.predict(crops[:0]).shape == (0, 2)


@pytest.mark.parametrize(("dtype", "moves"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_halves_the_file_and_hardly_moves_a_value(
    saved: Path, dtype: torch.dtype, moves: float
) -> None:
    model = load_model(saved)
    half = saved.with_name("half.safetensors")
    save_model(half, model.net, CARD, dtype=dtype)
    assert half.stat().st_size < 0.55 * saved.stat().st_size
    crops = torch.rand(3, 3, 64, 64) * 255
    torch.testing.assert_close(
        load_model(half).predict(crops), model.predict(crops), atol=moves, rtol=0
    )


def test_predictions_are_clipped(saved: Path) -> None:
    model = load_model(saved)
    torch.nn.init.constant_(model.net.regressor[-1].bias, 5.0)
    assert model.predict(torch.zeros(1, 3, 64, 64)).tolist() == [[1.0, 1.0]]


def test_saving_leaves_nothing_but_the_file(saved: Path) -> None:
    assert [p.name for p in saved.parent.iterdir()] == ["tiny.safetensors"]


def write(path: Path, metadata: object, weights: dict[str, torch.Tensor] | None = None) -> Path:
    weights = weights or {"w": torch.zeros(1)}
    save_file(weights, path, metadata={"vafer": json.dumps(metadata)} if metadata else None)
    return path


def test_what_is_no_model_file_is_refused_with_the_reason(saved: Path, tmp_path: Path) -> None:
    card = {"format_version": 1, **json.loads(json.dumps(CARD, default=vars_of))}
    cases = {
        "no such model file": tmp_path / "missing.safetensors",
        "damaged": tmp_path / "cut.safetensors",
        "did not write": write(tmp_path / "foreign.safetensors", None),
        "incomplete": write(tmp_path / "short.safetensors", {"format_version": 1}),
        "newer vafer": write(tmp_path / "new.safetensors", {**card, "format_version": 99}),
        "does not hold the weights": write(tmp_path / "other.safetensors", card),
    }
    cases["damaged"].write_bytes(saved.read_bytes()[:1000])
    for reason, path in cases.items():
        with pytest.raises(ModelError, match=reason) as raised:
            load_model(path)
        assert path.name in str(raised.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": float("inf")}, "lacks the model card"),
        ({"name": 5}, "name in its card is 5, expected text"),
        ({"licence": None}, "licence in its card is None, expected text"),
        ({"metrics": []}, r"metrics in its card is \[\], expected a JSON object"),
        ({"pool": True}, "pool in its card is True, expected a whole number"),
        ({"pool": 1.5}, "pool in its card is 1.5, expected a whole number"),
        ({"crop": {"size": 0}}, "its card asks for what cannot be: crop size is 0"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    card = {"format_version": 1, **json.loads(json.dumps(CARD, default=vars_of)), **change}
    path = write(tmp_path / "odd.safetensors", card)
    with pytest.raises(ModelError, match=rf"odd\.safetensors.*{says}"):
        read_card(path)


@pytest.mark.parametrize(
    ("value", "dtype", "size", "says"),
    [
        (torch.nan, torch.float32, 64, "gives NaN for a grey crop"),
        (1e300, torch.float64, 64, "gives NaN for a grey crop"),
        (0.0, torch.float32, 8, "cannot be run on crops of 8 pixels"),
    ],
)
def test_a_network_that_gives_no_numbers_is_refused(
    tmp_path: Path, value: float, dtype: torch.dtype, size: int, says: str
) -> None:
    net = AVNet("alexnet", 1).to(dtype)
    torch.nn.init.constant_(net.encoder[0][0].bias, value)
    path = tmp_path / "odd.safetensors"
    save_model(path, net, replace(CARD, crop=CropSpec(size=size)), dtype=dtype)
    with pytest.raises(ModelError, match=rf"odd\.safetensors {says}"):
        load_model(path)


def test_a_device_that_does_not_take_it_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AVNet, "to", full)
    with pytest.raises(ModelError, match=r"on cuda:1: CUDA out of memory\. Try --device cpu"):
        load_model(saved, device="cuda:1")


def test_an_unknown_backbone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_model(path, AVNet("alexnet", 1), replace(CARD, backbone="vgg"))
    with pytest.raises(ModelError, match="vgg"):
        load_model(path)
    with pytest.raises(ModelError, match="pool 6"):
        AVNet("resnet18", 6)


def vars_of(value: object) -> dict[str, object]:
    if isinstance(value, CropSpec):
        return value.to_dict()
    return {name: getattr(value, name) for name in ModelCard.__dataclass_fields__}
