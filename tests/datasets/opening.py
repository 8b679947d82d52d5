"""What the tests of the readers ask: a dataset's labels, its notices, the words of its refusal."""

import re
from pathlib import Path

import polars as pl
import pytest

from tests.trees import Labels
from vafer.datasets import open_dataset
from vafer.datasets.labels import LABELS, PICTURES, Dataset
from vafer.errors import UsageError

ADVICE = r"(?i)unpack|get the .* anew|correct|remove|rename|finish the download|name .*--root|check"


def opened(name: str, root: Path) -> tuple[Dataset, list[str]]:
    """The dataset and the notices of reading it."""
    notices: list[str] = []
    dataset = open_dataset(name, root, on_notice=notices.append)
    assert dataset.labels.schema == LABELS
    order = dataset.labels.select("video", "frame_index")
    assert order.equals(order.sort("video", "frame_index"))
    assert not order.is_duplicated().any()
    return dataset, notices


def labels_of(dataset: Dataset) -> Labels:
    columns = dataset.labels.select("video", "frame_index", "valence", "arousal")
    return {(video, frame): (v, a) for video, frame, v, a in columns.rows()}


def located(dataset: Dataset, *, must_exist: bool = True) -> pl.DataFrame:
    """All rows with their pictures."""
    rows = dataset.locate(dataset.labels, must_exist=must_exist)
    assert rows.schema == LABELS | PICTURES
    return rows


def refusal(name: str, root: Path, *, by_locate: bool = False) -> str:
    """The message with which a dataset is refused; it says what was expected and what to do."""
    dataset = opened(name, root)[0] if by_locate else None
    with pytest.raises(UsageError) as caught:
        open_dataset(name, root) if dataset is None else located(dataset)
    text = str(caught.value)
    assert re.search("expected|missing|have no|lack", text), text
    assert re.search(ADVICE, text), text
    assert "\n" not in text
    text.encode()
    return text
