"""The pictures in a run folder, each a PNG."""

from train.plots.features import plot_features
from train.plots.losses import plot_losses
from train.plots.predictions import plot_predictions

__all__ = ["plot_features", "plot_losses", "plot_predictions"]
