"""Valence and arousal of every face in every frame of a recording.

>>> import vafer
>>> results = vafer.annotate("videos/")
>>> results.table, results.videos

Names are imported at first use: `import vafer` itself loads neither torch nor a decoder.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vafer.annotation import Results, annotate
    from vafer.errors import VaferError
    from vafer.evaluation import Evaluation, evaluate
    from vafer.merging import Merged, merge
    from vafer.options import DetectorOptions, Sampling, Shard, SplitOptions
    from vafer.parts import read_table

# ONNX Runtime from 1.29 on tells its maker what it runs, and on what, unless this is set before it
# is imported. Whoever wants that may set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = [
    "DetectorOptions",
    "Evaluation",
    "Merged",
    "Results",
    "Sampling",
    "Shard",
    "SplitOptions",
    "VaferError",
    "annotate",
    "evaluate",
    "merge",
    "read_table",
]

_HOMES = {
    "DetectorOptions": "vafer.options",
    "Evaluation": "vafer.evaluation",
    "Merged": "vafer.merging",
    "Results": "vafer.annotation",
    "Sampling": "vafer.options",
    "Shard": "vafer.options",
    "SplitOptions": "vafer.options",
    "VaferError": "vafer.errors",
    "annotate": "vafer.annotation",
    "evaluate": "vafer.evaluation",
    "merge": "vafer.merging",
    "read_table": "vafer.parts",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vafer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
