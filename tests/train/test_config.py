"""Configs: defaults are the paper's, mistakes are named with what is meant."""

from dataclasses import asdict
from pathlib import Path

import pytest

from train.config import TrainConfig, parse_config, read_config, shipped_configs, to_yaml
from vafer.errors import UsageError

SHIPPED = sorted(p.relative_to(shipped_configs()).as_posix()
                 for p in shipped_configs().rglob("*.yaml"))  # fmt: skip


def read(tmp_path: Path, text: str, *changes: str) -> TrainConfig:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return read_config(path, changes)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_whole_and_survive_their_own_yaml(name: str, tmp_path: Path) -> None:
    config = read_config(name)
    assert read(tmp_path, to_yaml(config)) == config


@pytest.mark.parametrize(
    ("name", "dataset", "iterations"),
    [("affectnet", "affectnet", 50_000), ("afew_va", "afew-va", 50_000),
     ("aff_wild", "aff-wild", 100_000)],
)  # fmt: skip
def test_the_papers_values(name: str, dataset: str, iterations: int) -> None:
    """Kim & Song, AAAI 2021, "Implementation details"; spec of the method, "One iteration"."""
    config = read_config(name)
    assert (config.data.dataset, config.iterations, config.batch_size) == (dataset, iterations, 256)
    assert (config.crop.size, config.crop.size + 2 * config.data.border, config.pool) == (
        224,
        256,
        6,
    )
    assert config.crop.mean == (0.485, 0.456, 0.406)
    optimiser = config.optimiser
    assert (optimiser.lr, optimiser.betas, optimiser.weight_decay) == (1e-4, (0.9, 0.999), 0)
    assert (optimiser.schedule, optimiser.decay, optimiser.decay_every) == ("step", 0.8, 10_000)
    assert config.seeds == (0, 1, 2, 3, 4)
    assert (config.critic, config.margin.kind, config.grouping.method) == (
        "caf",
        "adaptive",
        "otsu",
    )
    assert (config.margin.constant, config.margin.linear_start, config.margin.linear_step) == (
        0.2, 0.1, 5e-3)  # fmt: skip
    assert (config.game.n_latent, config.margin.confidence, config.data.augment) == (
        16,
        0.05,
        "crop",
    )


def test_table_4_has_a_config_a_row() -> None:
    of_table_4 = [n for n in SHIPPED if n.startswith(("ablation/alexnet-", "ablation/resnet18-"))]
    rows = {
        (c.model.backbone, c.critic, c.margin.kind): c.batch_size
        for c in map(read_config, of_table_4)
    }
    assert len(of_table_4) == len(rows)
    critics = [(k, "adaptive") for k in ("none", "fisher", "sphere", "gram", "caf")]
    critics += [("caf", "constant"), ("caf", "linear")]
    assert rows == {
        (backbone, *critic): batch_size
        for backbone, batch_size in (("alexnet", 256), ("resnet18", 128))
        for critic in critics
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("critik: caf", "there is no critik: did you mean critic?"),
        ("margin: {kindd: constant}", "there is no margin.kindd: did you mean margin.kind?"),
        ("lr: 1e-3", "there is no lr: did you mean optimiser.lr?"),
        ("zzz: 1", "expected one of data, crop, model, critic"),
        ("margin: {kind: konstant}", "margin.kind is 'konstant': .*'adaptive', 'constant' or 'lin"),
        ("batch_size: many", "batch_size is 'many': .*integer"),
        ("batch_size: '64'", "batch_size is '64': .*integer"),
        ("iterations: true", "iterations is True: .*integer"),
        ("margin: {detach: 'yes'}", "margin.detach is 'yes': .*boolean"),
        ("optimiser: {lr: .inf}", "optimiser.lr is inf: expected a finite number"),
        ("dropout: 0.3", "there is no dropout: did you mean model.dropout?"),
        ("kind: linear", "there is no kind: did you mean crop.kind or margin.kind?"),
        ("crop: {size: 48}", "crop.size is 48: expected 63 pixels or more for alexnet"),
        ("margin: 3", "margin is 3: expected a section with kind, constant"),
        ("seeds: 3", "seeds is 3: .*list"),
        ("seeds: [1, 1]", r"seeds is \[1, 1\]: expected each once"),
        ("critic: false", "critic is False: input should be 'none'"),
        ("data: {fold: 5}", "data.fold is 5: expected 0 to 4"),
        (
            "data: {dataset: faces, assignment: split.json}",
            "data.assignment is split.json: expected null with data.dataset faces",
        ),
        ("margin: {constant: -0.1}", "margin.constant is -0.1: expected 0 or more"),
        ("margin: {linear_step: -1}", "margin.linear_step is -1.0: expected 0 or more"),
        ("margin: {neighbour_margin: 0}", "margin.neighbour_margin is 0.0: expected more than 0"),
        ("model: {pool: 7}", "model.pool is 7: expected at most 6, the side of the feature map"),
        ("model: {backbone: resnet18, pool: 2}", "model.pool is 2: expected at most 1"),
        ("iterations: 0", "iterations is 0: expected 1 or more"),
        ("optimiser: {lr: -1}", "optimiser.lr is -1.0: expected more than 0"),
        ("optimiser: {betas: [0.9, 1.0]}", r"optimiser.betas\[1\] is 1.0"),
        ("crop: {size: 0}", "crop size is 0"),
        ("seeds: [0]\nseeds: [1]", "duplicate key"),
        ("- a\n- b", "holds a list: expected"),
        ("a: 1\nb: [", "is no YAML in line 2: expected the node content"),
        ("device: gpu", "device is gpu: expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_mistake_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path, text)
    assert "my.yaml" in str(error.value)


def test_changes_come_over_the_file(tmp_path: Path) -> None:
    config = read(
        tmp_path, "optimiser: {lr: 1e-2, warmup: 7}", "optimiser.lr=3e-3", "seeds=[1, 2]",
        "data.root=/faces", "margin.detach=true", "model.pool=null",
    )  # fmt: skip
    assert (config.optimiser.lr, config.optimiser.warmup, config.seeds) == (3e-3, 7, (1, 2))
    assert (config.data.root, config.margin.detach) == (Path("/faces"), True)
    with pytest.raises(UsageError, match=r"--set optimiser.lrr=1: there is no optimiser.lrr"):
        read(tmp_path, "", "optimiser.lrr=1")
    with pytest.raises(UsageError, match=r"--set batch_size: expected KEY=VALUE"):
        read(tmp_path, "", "batch_size")


def test_a_config_is_found_as_a_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config("quickstart").data.dataset == "synthetic"
    (tmp_path / "quickstart.yaml").write_text("batch_size: 9")
    assert read_config("quickstart.yaml").batch_size == 9
    with pytest.raises(UsageError, match=r"no such config file.*quickstart"):
        read_config("zzz")
    with pytest.raises(UsageError, match=r"Did you mean quickstart\?"):
        read_config("quickstrat.yaml")
    with pytest.raises(UsageError, match="a folder"):
        read_config(tmp_path)


def test_what_is_resolved_has_the_types_of_the_defaults() -> None:
    values = asdict(TrainConfig())
    assert parse_config(values, "here") == TrainConfig()
    values["optimiser"]["lr"] = 1  # a whole number where another may be
    assert parse_config(values, "here").optimiser.lr == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["critic=none", "game.adv_weight=0.1"], ["game.adv_weight does nothing with critic none"]),
        (["critic=gram", "margin.kind=linear"], ["margin.kind does nothing with critic gram"]),
        (["critic=fisher", "game.n_latent=8"], ["game.n_latent does nothing with critic fisher"]),
        (["grouping.k=3"], ["grouping.k does nothing with grouping.method otsu"]),
        (["grouping.method=kmeans", "grouping.k=3"], []),
        (["margin.constant=0.3"], ["margin.constant does nothing with margin.kind adaptive"]),
        (["margin.kind=constant", "margin.constant=0.3"], []),
        (["expression_weight=1", "data.labels=graded"],
         ["data.labels does nothing with data.dataset affectnet",
          "expression_weight does nothing with data.dataset affectnet"]),
        (["data.augment=none", "data.border=4"],
         ["data.border does nothing with data.augment none"]),
        (["optimiser.schedule=cosine", "optimiser.decay=0.5"],
         ["optimiser.decay does nothing with optimiser.schedule cosine"]),
    ],
)  # fmt: skip
def test_values_that_do_nothing_are_named(changes: list[str], expected: list[str]) -> None:
    assert read_config("affectnet", changes).unused() == expected


@pytest.mark.parametrize(
    ("size", "pool"), [(224, 6), (112, 2), (64, 1), (63, 1)],
)  # fmt: skip
def test_the_head_fits_the_crop(size: int, pool: int) -> None:
    import torch
    from torchvision.models import alexnet

    values = asdict(TrainConfig())
    values["crop"]["size"] = size
    assert parse_config(values, "here").pool == pool
    assert alexnet(weights=None).features(torch.zeros(1, 3, size, size)).shape[-1] == pool
