"""The authors' pair → our model file, against the same network written out in plain PyTorch."""

import errno
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import alexnet

from vafer import convert as module
from vafer.convert import CROP, convert
from vafer.download import git_blob_id
from vafer.errors import ModelError, OutputError, UsageError
from vafer.model import load_model, read_card
from vafer.remote import CAF_ALEXNET

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> tuple[Weights, Weights]:
    torch.manual_seed(0)
    encoder = {k: v for k, v in alexnet(weights=None).state_dict().items() if "features" in k}
    linear = {
        "lin0": torch.nn.Linear(9216, 64),
        "lin1": torch.nn.Linear(64, 8),
        "va_regressor": torch.nn.Linear(8, 2),
    }
    regressor = {
        f"{name}.{k}": v for name, layer in linear.items() for k, v in layer.state_dict().items()
    }
    return encoder, regressor


@pytest.fixture
def pair(weights: tuple[Weights, Weights], tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path / "Encoder.t7", weights[0]), save(tmp_path / "FC_layer.t7", weights[1])


def save(path: Path, state: object, **how: Any) -> Path:
    torch.save(state, path, **how)
    return path


def plain(encoder: Weights, regressor: Weights, x: torch.Tensor) -> torch.Tensor:
    """Their forward pass, written out: AlexNet's features, then three linear layers."""
    for i, (stride, padding) in {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}.items():
        weight, bias = encoder[f"features.{i}.weight"], encoder[f"features.{i}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, stride, padding))
        if i in (0, 3, 10):
            x = F.max_pool2d(x, 3, 2)
    x = F.adaptive_avg_pool2d(x, 6).flatten(1)
    x = F.relu(F.linear(x, regressor["lin0.weight"], regressor["lin0.bias"]))
    x = F.relu(F.linear(x, regressor["lin1.weight"], regressor["lin1.bias"]))
    return F.linear(x, regressor["va_regressor.weight"], regressor["va_regressor.bias"])


def test_the_converted_model_computes_the_same(
    weights: tuple[Weights, Weights], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "mine.safetensors"
    convert(*pair, out)
    model = load_model(out)
    crops = torch.randint(0, 256, (3, 3, 224, 224)).float()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = plain(*weights, (crops / 255 - mean) / std)
    assert expected.std(dim=0).min() > 1e-4  # it depends on the face
    assert (model.predict(crops) - expected.clamp(-1, 1)).abs().max() < 1e-6

    card = model.card
    assert (card.name, card.backbone, card.pool, card.crop) == ("mine", "alexnet", 6, CROP)
    assert (card.licence, card.training["source"]) == ("unknown", "not known")
    assert card.training["git_blob_ids"]["encoder"] == git_blob_id(pair[0])


@pytest.mark.parametrize("prefix", ["module.", "model.", "alexnet.", "module.encoder.", "_"])
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_prefixes_old_files_and_empty_tensors(
    weights: tuple[Weights, Weights],
    pair: tuple[Path, Path],
    tmp_path: Path,
    prefix: str,
    how: dict[str, Any],
) -> None:
    convert(*pair, tmp_path / "plain.safetensors")
    prefixed = [
        OrderedDict([("none", torch.empty(0)), *((prefix + k, v) for k, v in part.items())])
        for part in weights
    ]
    files = [save(tmp_path / f"{i}.t7", part, **how) for i, part in enumerate(prefixed)]
    convert(files[0], files[1], tmp_path / "prefixed.safetensors")
    one, other = (
        load_model(tmp_path / f"{name}.safetensors").net.state_dict()
        for name in ("plain", "prefixed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_published_pair_is_known_by_its_blob_ids(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = {"Encoder.t7": CAF_ALEXNET.encoder_blob, "FC_layer.t7": CAF_ALEXNET.regressor_blob}
    monkeypatch.setattr(module, "git_blob_id", lambda path: blobs[path.name])
    convert(*pair, tmp_path / "caf.safetensors")
    card = read_card(tmp_path / "caf.safetensors")
    assert card.licence == "not stated by its authors; ask them"
    assert card.training["datasets"] == ["aff-wild", "afew-va"]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_code_in_a_pickle_is_refused_and_not_run(
    weights: tuple[Weights, Weights], pair: tuple[Path, Path], tmp_path: Path, how: dict[str, Any]
) -> None:
    mark = tmp_path / "executed"
    bad = save(tmp_path / "bad.t7", {**weights[0], "x": Malicious(mark)}, **how)
    with pytest.raises(ModelError, match=r"bad\.t7 holds more than weights: .*It was not"):
        convert(bad, pair[1], tmp_path / "out.safetensors")
    assert not mark.exists()
    torch.load(bad, weights_only=False)  # it would have done it
    assert mark.exists()


def changed(state: Weights, **changes: Any) -> dict[str, Any]:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return {k: v for k, v in {**state, **named}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features__0__weight": None}, "lacks features.0.weight of the encoder"),
        ({"classifier__1__weight": torch.ones(2)}, "holds classifier.1.weight, which the encoder"),
        ({"features__2__weight": torch.ones(2)}, "holds features.2.weight"),
        ({"module__features__0__bias": torch.ones(64)}, "holds features.0.bias twice"),
        ({"features__0__bias": torch.ones(96)}, r"has shape (96,), expected (64,)"),
        ({"features__0__bias": torch.ones(64, dtype=torch.int64)}, "is torch.int64"),
        ({"features__0__bias": torch.full((64,), torch.nan)}, "NaN"),
        ({"features__0__bias": torch.full((64,), 1e300, dtype=torch.float64)}, "infinite"),
        (
            {"features__0__bias": torch.ones(64).to_sparse()},
            "is sparse, nested or of another layout",
        ),
        ({"features__0__bias": torch.ones(64, device="meta")}, "is without values"),
        ({"features__0__bias": "text"}, "is str"),
        ({"epoch": 3}, "holds epoch"),
    ],
)
def test_another_network_is_refused_by_name(
    weights: tuple[Weights, Weights],
    pair: tuple[Path, Path],
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    bad = save(tmp_path / "bad.t7", changed(weights[0], **changes))
    with pytest.raises(ModelError) as caught:
        convert(bad, pair[1], tmp_path / "out.safetensors")
    assert says in str(caught.value)
    assert str(bad) in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_swapped_and_doubled_files_are_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="Swap them"):
        convert(pair[1], pair[0], out)
    with pytest.raises(ModelError, match=r"Encoder\.t7 holds features.*the regressor does not"):
        convert(pair[0], pair[0], out)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02.", b"PK\x03\x04" + b"\0" * 99])
def test_what_is_no_state_dict_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, content: bytes
) -> None:
    bad = tmp_path / "bad.t7"
    bad.write_bytes(content)
    found = "damaged, cut off, of another kind, or holds code" if content else "empty"
    with pytest.raises(ModelError, match=f"it is {found}, and nothing in it was run") as caught:
        convert(bad, pair[1], tmp_path / "out.safetensors")
    assert "weights_only" not in str(caught.value)  # PyTorch's advice is not ours


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_file_that_is_cut_off_is_refused(
    weights: tuple[Weights, Weights], pair: tuple[Path, Path], tmp_path: Path,
    share: float, how: dict[str, Any],
) -> None:  # fmt: skip
    data = save(tmp_path / "whole.t7", weights[0], **how).read_bytes()
    bad = tmp_path / "bad.t7"
    bad.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"bad\.t7 cannot be read as PyTorch weights"):
        convert(bad, pair[1], tmp_path / "out.safetensors")


def test_a_missing_file_a_folder_and_a_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        convert(tmp_path / "gone.t7", pair[1], out)
    with pytest.raises(ModelError, match="is a folder"):
        convert(tmp_path, pair[1], out)
    with pytest.raises(ModelError, match="holds a Tensor"):
        convert(save(tmp_path / "t.t7", torch.ones(3)), pair[1], out)


def test_an_output_that_is_there_or_cannot_be_written(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        convert(*pair, out)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="ends in"):
        convert(*pair, tmp_path / "out.pt")

    def full(*args: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_model", full)
    with pytest.raises(OutputError, match="No space left"):
        convert(*pair, tmp_path / "other.safetensors")


def test_a_file_with_a_changed_byte_is_refused(
    weights: tuple[Weights, Weights], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    data = bytearray(save(tmp_path / "whole.t7", weights[0]).read_bytes())
    data[len(data) // 2] ^= 1  # PyTorch itself would read it
    (tmp_path / "bad.t7").write_bytes(data)
    with pytest.raises(ModelError, match=r"bad\.t7 cannot be read as PyTorch weights: it is dam"):
        convert(tmp_path / "bad.t7", pair[1], tmp_path / "out.safetensors")
