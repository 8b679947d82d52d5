"""`python -m train`: train a model on the face sets from the command line."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from train.config import TrainConfig


def train(
    faces: Annotated[
        Path, typer.Option(help="Folder with fer2013.parquet and lfw_expressions.parquet.")
    ],
    detector: Annotated[Path, typer.Option(help="ONNX face detector with five landmarks.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = TrainConfig.epochs,
    device: Annotated[str, typer.Option(help="cpu or cuda[:N].")] = TrainConfig.device,
    seed: Annotated[
        int, typer.Option(help="Of weights, order and augmentation.")
    ] = TrainConfig.seed,
) -> None:
    """Train the network of CAF on L_AV alone, from scratch, on faces with expression labels."""
    from train.run import run
    from vafer.errors import VaferError

    try:
        config = replace(TrainConfig(faces, detector), epochs=epochs, device=device, seed=seed)
        path = run(config, out, on_notice=lambda text: typer.echo(text, err=True))
    except VaferError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(path)


if __name__ == "__main__":
    typer.run(train)
