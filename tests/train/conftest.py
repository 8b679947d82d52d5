"""What the tests of training share: a few real faces."""

from pathlib import Path

import polars as pl
import pytest


@pytest.fixture(scope="session")
def few_faces(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ../shared/faces with 48 pictures of each set."""
    folder = tmp_path_factory.mktemp("faces")
    fer = pl.scan_parquet(shared / "faces" / "fer2013.parquet")
    halves = [
        fer.filter(pl.col("split") == split).head(24).collect() for split in ("train", "test")
    ]
    pl.concat(halves).write_parquet(folder / "fer2013.parquet")
    lfw = pl.scan_parquet(shared / "faces" / "lfw_expressions.parquet").head(48).collect()
    lfw.write_parquet(folder / "lfw_expressions.parquet")
    return folder
