"""Pictures of annotations, predictions and features, each a PNG."""

from vafer.plots.annotated import plot_annotation
from vafer.plots.features import plot_features
from vafer.plots.plane import plot_error_plane
from vafer.plots.predictions import plot_predictions
from vafer.plots.traces import plot_traces

__all__ = [
    "plot_annotation",
    "plot_error_plane",
    "plot_features",
    "plot_predictions",
    "plot_traces",
]
