"""What a training run is asked to do. All defaults of training live here: the paper's, but for one
seed and `grouping.values`.

A YAML file holds what differs from them, `--set` what differs from the file. Kim & Song, AAAI 2021;
what the paper leaves open is documented beside each value.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

from vafer.crops import CropSpec
from vafer.errors import UsageError, VaferError
from vafer.model import Backbone
from vafer.options import SplitOptions

Dataset = Literal["affectnet", "afew-va", "aff-wild", "aff-wild2", "faces", "synthetic"]
CriticKind = Literal["none", "caf", "fisher", "sphere", "gram"]


def _expect(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"{key} is {found}: expected {expected}")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which faces, and how they are fed.

    root: the data set's folder; $VAFER_DATA/<dataset> if null. detector: of the landmarks that the
    data set does not give, a name or an ONNX file; the embedded one if null. cache: folder of the
    crops; $VAFER_DATA/crops if null. fold: of `n_folds` by person, the one that is held out.
    split_seed, split_fraction: of Aff-Wild's videos that are held out. assignment: file that says
    who is held out instead, such as the split.json of a run or an evaluation. border: pixels of
    surroundings stored around each crop, for augmentation. augment: `crop` is the paper's (random
    crop and flip), `strong` adds turns, blur, light and occlusion, `none` takes the middle. labels:
    of the dataset `faces`, whose faces have the name of an expression; `graded` mixes it with what
    a face looks like to networks that never saw it. in_memory: `auto` keeps the decoded set on the
    device when it takes less than half of its free memory.
    """

    dataset: Dataset = "affectnet"
    root: Path | None = None
    detector: Path | None = None
    cache: Path | None = None
    fold: int = 0
    n_folds: int = SplitOptions.n_folds
    split_seed: int = SplitOptions.seed
    split_fraction: float = SplitOptions.fraction
    assignment: Path | None = None
    border: int = 16
    augment: Literal["none", "crop", "strong"] = "crop"
    labels: Literal["norms", "graded"] = "norms"
    in_memory: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        _expect(self.n_folds >= 2, "data.n_folds", self.n_folds, "2 or more")
        _expect(0 <= self.fold < self.n_folds, "data.fold", self.fold, f"0 to {self.n_folds - 1}")
        _expect(0 < self.split_fraction < 1, "data.split_fraction", self.split_fraction, "0 to 1")
        _expect(self.border >= 0, "data.border", self.border, "0 or more")
        _expect(
            self.assignment is None or self.dataset not in ("faces", "synthetic"),
            "data.assignment",
            self.assignment,
            f"null with data.dataset {self.dataset}, whose persons are parted by their names",
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """pool: side of AlexNet's averaged feature map; null fits it to the crop: 6 at 224 pixels.

    pretrained: a state dict of torchvision's ImageNet weights for the encoder, null from scratch.
    dropout: of the regressor.
    """

    backbone: Backbone = "alexnet"
    pool: int | None = None
    pretrained: Path | None = None
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _expect(self.pool is None or self.pool >= 1, "model.pool", self.pool, "1 or more")
        _expect(0 <= self.dropout < 1, "model.dropout", self.dropout, "0 or more, below 1")


@dataclass(frozen=True, slots=True)
class GroupingConfig:
    """How labels part into strong and weak (Algorithm 1, line 3).

    method: Otsu's threshold, or the mean of `k` cluster centres. values: thresholds of |v| and |a|,
    or as the paper writes of v and a, which leaves the weak group nearly empty where labels are
    symmetric around 0. scope: thresholds of each batch, or once of the whole training set.
    """

    method: Literal["otsu", "kmeans"] = "otsu"
    k: int = 2
    values: Literal["magnitude", "signed"] = "magnitude"
    scope: Literal["batch", "dataset"] = "batch"

    def __post_init__(self) -> None:
        _expect(self.k >= 2, "grouping.k", self.k, "2 or more")


@dataclass(frozen=True, slots=True)
class MarginConfig:
    """The margin α̂ of the contrastive function, Eqs. (5) and (8).

    kind: what its second term Δ is: `adaptive`, or `constant` κ, or `linear`, which starts at
    `linear_start` and grows by `linear_step` an epoch. confidence: c. k_max, neighbour_margin:
    largest neighbourhood, and A of its rule. sigma: of the Gaussian kernel. pairing: with which
    weak sample each strong one is compared for the mutual information. detach: whether no gradient
    flows through the margin at all.
    """

    kind: Literal["adaptive", "constant", "linear"] = "adaptive"
    constant: float = 0.2
    linear_start: float = 0.1
    linear_step: float = 5e-3
    confidence: float = 0.05
    k_max: int = 10
    neighbour_margin: float = 0.7
    sigma: float = 1.0
    pairing: Literal["nearest", "random"] = "nearest"
    detach: bool = False

    def __post_init__(self) -> None:
        _expect(0 < self.confidence < 1, "margin.confidence", self.confidence, "0 to 1")
        _expect(self.k_max >= 1, "margin.k_max", self.k_max, "1 or more")
        _expect(self.sigma > 0, "margin.sigma", self.sigma, "more than 0")
        for name in ("constant", "linear_start", "linear_step"):
            _expect(getattr(self, name) >= 0, f"margin.{name}", getattr(self, name), "0 or more")
        _expect(
            self.neighbour_margin > 0, "margin.neighbour_margin", self.neighbour_margin,
            "more than 0",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GameConfig:
    """How critic and encoder play.

    chi2_weight: λ of the third term of Eq. (3); 0 leaves it out, as Eq. (6) does. pairs: all of a
    batch, or each sample with one partner. sigmoid: bounds the critic's output, which the paper
    does not; without it L_adv has no floor. adv_weight: scales the learning rate of the adversarial
    step, since Adam ignores a factor of the loss. adv_loss: `mean` is the paper's −E_Q z;
    `distance` draws the weak to the centre of the strong, which has a floor. n_latent: d.
    """

    chi2_weight: float = 1.0
    pairs: Literal["all", "matched"] = "all"
    sigmoid: bool = False
    adv_weight: float = 1.0
    adv_loss: Literal["mean", "distance"] = "mean"
    n_latent: int = 16

    def __post_init__(self) -> None:
        _expect(self.chi2_weight >= 0, "game.chi2_weight", self.chi2_weight, "0 or more")
        _expect(self.adv_weight >= 0, "game.adv_weight", self.adv_weight, "0 or more")
        _expect(self.n_latent >= 1, "game.n_latent", self.n_latent, "1 or more")


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """Adam of all three steps. weight_decay: decoupled, as in AdamW; the paper has none. Of the two
    steps that move the encoder, that of L_AV alone decays it.

    schedule: `step` multiplies the rate by `decay` every `decay_every` iterations; `cosine` falls
    to 0 over the run. warmup: iterations over which the rate rises from near 0.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["step", "cosine"] = "step"
    decay: float = 0.8
    decay_every: int = 10_000
    warmup: int = 0

    def __post_init__(self) -> None:
        _expect(self.lr > 0, "optimiser.lr", self.lr, "more than 0")
        _expect(self.weight_decay >= 0, "optimiser.weight_decay", self.weight_decay, "0 or more")
        _expect(0 < self.decay <= 1, "optimiser.decay", self.decay, "more than 0, at most 1")
        _expect(self.decay_every >= 1, "optimiser.decay_every", self.decay_every, "1 or more")
        _expect(self.warmup >= 0, "optimiser.warmup", self.warmup, "0 or more")
        for i, beta in enumerate(self.betas):
            _expect(0 <= beta < 1, f"optimiser.betas[{i}]", beta, "0 or more, below 1")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run, or one a seed.

    critic: the adversary, one of the paper's Table 4. expression_weight: of a second task beside
    L_AV, to read the expressions of graded labels off the features; not the paper's. iterations,
    batch_size: of the global batch, over all processes together. precision: what the encoder
    computes in; all else is float32 always. compile: torch.compile for encoder and regressor.
    Logged, scored and checkpointed every so many iterations; and at the end.
    """

    data: DataConfig = field(default_factory=DataConfig)
    crop: CropSpec = field(default_factory=lambda: CropSpec(size=224))
    model: ModelConfig = field(default_factory=ModelConfig)
    critic: CriticKind = "caf"
    expression_weight: float = 0.0
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    game: GameConfig = field(default_factory=GameConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    iterations: int = 50_000
    batch_size: int = 256
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    log_every: int = 50
    evaluate_every: int = 1000
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("iterations", "log_every", "evaluate_every", "checkpoint_every"):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _expect(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        _expect(
            self.expression_weight >= 0, "expression_weight", self.expression_weight, "0 or more"
        )
        _expect(bool(self.seeds), "seeds", list(self.seeds), "one or more, as in [0, 1, 2]")
        _expect(len({*self.seeds}) == len(self.seeds), "seeds", list(self.seeds), "each once")
        _expect(min(self.seeds) >= 0, "seeds", list(self.seeds), "0 or more")
        _expect(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            "device",
            self.device,
            "auto, cpu, cuda or cuda:N",
        )

        _expect(self.map_size >= 1, "crop.size", self.crop.size, "63 pixels or more for alexnet")
        _expect(
            self.pool <= self.map_size, "model.pool", self.pool,
            f"at most {self.map_size}, the side of the feature map",
        )  # fmt: skip

    @property
    def map_size(self) -> int:
        """Side of AlexNet's last feature map; ResNet18 is pooled to 1 whatever it is."""
        if self.model.backbone == "resnet18":
            return 1
        side = self.crop.size
        for kernel, stride, padding in ((11, 4, 2), (3, 2, 0), (3, 2, 0), (3, 2, 0)):
            side = (side + 2 * padding - kernel) // stride + 1
        return side

    @property
    def pool(self) -> int:
        """Side of the averaged feature map: as asked for, or that of the map."""
        return self.map_size if self.model.pool is None else self.model.pool

    def unused(self) -> list[str]:
        """Values that differ from the default and do nothing beside the others, each with why."""
        kind, dataset = self.margin.kind, self.data.dataset
        idle = [  # why, whether, and which
            (f"data.dataset {dataset}", dataset not in ("afew-va", "faces"),
             ("data.fold", "data.n_folds")),
            (f"data.dataset {dataset}", dataset != "aff-wild", ("data.split_*",)),
            (f"data.dataset {dataset}", dataset != "faces", ("data.labels",)),
            ("data.assignment", self.data.assignment is not None, ("data.n_folds", "data.split_*")),
            (f"data.dataset {dataset}", dataset != "faces", ("expression_weight",)),
            ("data.labels norms", self.data.labels == "norms", ("expression_weight",)),
            ("data.augment none", self.data.augment == "none", ("data.border",)),
            ("critic none", self.critic == "none", ("grouping.*", "margin.*", "game.*")),
            (f"critic {self.critic}", self.critic != "caf",
             ("margin.*", "game.chi2_weight", "game.pairs", "game.adv_loss")),
            ("critic fisher", self.critic == "fisher", ("game.n_latent",)),
            ("grouping.method otsu", self.grouping.method == "otsu", ("grouping.k",)),
            (f"margin.kind {kind}", kind != "constant", ("margin.constant",)),
            (f"margin.kind {kind}", kind != "linear", ("margin.linear_*",)),
            (f"margin.kind {kind}", kind != "adaptive",
             ("margin.confidence", "margin.k_max", "margin.neighbour_margin")),
            ("optimiser.schedule cosine", self.optimiser.schedule == "cosine",
             ("optimiser.decay", "optimiser.decay_every")),
        ]  # fmt: skip
        default = flat(asdict(TrainConfig()))
        found = []
        for key, value in flat(asdict(self)).items():
            reasons = [
                why
                for why, is_so, patterns in idle
                if is_so and any(fnmatch(key, pattern) for pattern in patterns)
            ]
            if reasons and value != default[key]:
                found.append(f"{key} does nothing with {reasons[0]}")
        return found


def flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested values → one level, with keys such as `margin.kind`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{at}{key}.")
        else:
            found[f"{at}{key}"] = value
    return found


def read_config(source: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, on top of the defaults, and apply `changes` (`key.sub=value`) to it.

    source: a path, or the name of a config that ships, with or without `.yaml`. Raises UsageError
    with the file, the key and the nearest right one.
    """
    path = find_config(source)
    values: dict[str, Any] = asdict(TrainConfig())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    _overlay(values, _load(text, str(path)), str(path))
    for change in changes:
        key, equals, text = change.partition("=")
        if not (key and equals):
            raise UsageError(f"--set {change}: expected KEY=VALUE, as in optimiser.lr=1e-3")
        layer: Any = _parse(text, f"--set {change}")
        for name in reversed(key.strip().split(".")):
            layer = {name: layer}
        _overlay(values, layer, f"--set {change}")
    return parse_config(values, " ".join([str(path), *(f"--set {c}" for c in changes)]))


def parse_config(values: Mapping[str, Any], where: str) -> TrainConfig:
    """All values of a config, nested as in YAML → TrainConfig. Raises UsageError with the key."""
    from pydantic import TypeAdapter, ValidationError

    try:
        # As JSON: pydantic is strict there about what YAML tells apart too, and no more than that.
        return TypeAdapter(TrainConfig).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        found = [
            f"{_dotted(e['loc'])} is {e['input']!r}: {_in_yaml(e['msg'])}" for e in error.errors()
        ]
        raise UsageError(f"{where}: {'; '.join(found)}") from error
    except VaferError as error:
        raise UsageError(f"{where}: {error}") from error


def to_yaml(config: TrainConfig) -> str:
    """The whole config, every value resolved, as `config.yaml` in a run folder holds it."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 100
    text = StringIO()
    yaml.dump(_plain(asdict(config)), text)
    return text.getvalue()


def shipped_configs() -> Path:
    """The folder of the configs that ship: beside train/ in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(source: str | Path) -> Path:
    """A config's path: as given, else among those that ship. Raises UsageError naming these."""
    ships = shipped_configs()
    for folder in (Path(), ships):
        for ending in ("", ".yaml"):
            path = folder / f"{source}{ending}"
            if path.is_file():
                return path
    names = sorted(p.relative_to(ships).with_suffix("").as_posix() for p in ships.rglob("*.yaml"))
    near = get_close_matches(str(source).removesuffix(".yaml"), names, n=1)
    raise UsageError(
        f"{source}: {'a folder' if Path(source).is_dir() else 'no such config file'}. "
        + (f"Did you mean {near[0]}?" if near else f"Expected a file, or one of {', '.join(names)}")
    )


def _load(text: str, where: str) -> dict[str, Any]:
    values = _parse(text, where)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where} holds a {type(values).__name__}: expected `key: value` lines")
    return values


def _parse(text: str, where: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where} is no YAML{line}: {problem}") from error


def _overlay(values: dict[str, Any], changes: Mapping[Any, Any], where: str, at: str = "") -> None:
    """Put `changes` over `values`, in place; a key that is not there yet is an error."""
    for key, value in changes.items():
        if key not in values:
            near = _elsewhere(str(key)) or [
                f"{at}{name}" for name in get_close_matches(str(key), values, n=1, cutoff=0.5)
            ]
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"expected one of {', '.join(values)}"
            )
            raise UsageError(f"{where}: there is no {at}{key}: {hint}")
        if isinstance(values[key], dict):
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"{where}: {at}{key} is {value!r}: expected a section with "
                    f"{', '.join(values[key])}"
                )
            _overlay(values[key], value, where, f"{at}{key}.")
        else:
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{where}: {at}{key} is {value}: expected a finite number")
            values[key] = value


def _elsewhere(key: str) -> list[str]:
    """The full names of keys that end in `key`, in any section."""
    types = get_type_hints(TrainConfig)
    return [
        f"{section.name}.{key}" if section.name != key else key
        for section in fields(TrainConfig)
        if section.name == key
        or (
            is_dataclass(types[section.name])
            and key in {f.name for f in fields(cast(Any, types[section.name]))}
        )
    ]


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the config"


def _in_yaml(message: str) -> str:
    """pydantic's words for JSON's types → YAML's."""
    return message.lower().replace("valid array", "list, as in [0, 1]")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        from ruamel.yaml.comments import CommentedSeq

        line = CommentedSeq(_plain(v) for v in value)
        line.fa.set_flow_style()
        return line
    return str(value) if isinstance(value, Path) else value
