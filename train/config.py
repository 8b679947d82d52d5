"""What a training run is asked to do; the defaults of training live here alone."""

from dataclasses import dataclass, field
from pathlib import Path

from vafer.crops import CropSpec
from vafer.errors import UsageError
from vafer.model import Backbone


@dataclass(frozen=True)  # no slots: the command line reads the defaults off the class
class TrainConfig:
    """One run.

    faces: folder with fer2013.parquet and lfw_expressions.parquet. detector: ONNX file that finds
    the landmarks of the crops. epochs: passes over the training set. learning_rate: its peak; it
    rises over `warmup` steps and falls to 0 by a cosine. bf16: the network computes in bfloat16,
    the losses never do.
    """

    faces: Path
    detector: Path
    backbone: Backbone = "alexnet"
    pool: int = 2
    crop: CropSpec = field(default_factory=lambda: CropSpec(size=112, grey=True))
    border: int = 8
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    warmup: int = 100
    seed: int = 0
    device: str = "cpu"
    bf16: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "pool"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate is {self.learning_rate}: expected more than 0")
