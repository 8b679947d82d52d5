"""What the command line shows: progress on stderr, tables on stdout. rich lives here alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vafer.errors import counted

if TYPE_CHECKING:  # polars and torch stand behind it, and --help must not wait for them
    import polars as pl

    from train.run import Outcome, Report
    from vafer.annotation import Progress, Results
    from vafer.catalogue import Entry, Info
    from vafer.evaluation import Evaluation
    from vafer.merging import Merged
    from vafer.predicting import EvaluationProgress

EARLIER = "of an earlier run with other inputs"
PIPE_COLUMNS = 1000  # of a table that no terminal wraps
EXPLAINED = {  # scores of the list
    "CCC": "of valence and arousal, on the set that is named",
    "recall": "share of the faces of 40 pixels or more that a stronger detector finds there",
    "false": "false faces in 100 pictures without one",
}
SHORT_LIST = 5  # longer ones of a card are shown as their length

stdout = Console(highlight=False, soft_wrap=True, emoji=False)
stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """A bar over all bytes, with frames a second and time to go; silent where nobody watches."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    if quiet or not stderr.is_terminal:
        yield lambda progress: None
        return
    shortened = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.0f} frames/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[video]}", markup=False, table_column=shortened),
        console=stderr,
        transient=True,
        expand=True,  # the name gets what the others leave
    ) as bar:
        task = bar.add_task("loading models", total=1.0, rate=0.0, video="", start=False)

        def show(progress: "Progress") -> None:
            if not bar.tasks[task].started:  # only now: loading the models is no work on videos
                bar.start_task(task)
            elapsed = bar.tasks[task].elapsed or 0
            bar.update(
                task,
                description=f"{progress.n_done}/{progress.n_videos} videos",
                completed=progress.share,
                rate=progress.n_frames / elapsed if elapsed else 0,
                video=_printable(progress.video or ""),
            )

        yield show


def show_results(results: "Results") -> None:
    """Print the summary of a run, and each recording that is not in order, with the reason."""
    assert results.path is not None
    videos = results.videos
    counts = {name: int((videos["status"] == name).sum()) for name in ("done", "partial", "failed")}
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    earlier = [
        f"{n} {what}"
        for n, what in (
            (results.n_skipped, "finished by an earlier run"),
            (len(results.others), EARLIER),
        )
        if n
    ]
    table.add_row("videos", str(len(videos)), ", ".join(earlier))
    table.add_row("  done", str(counts["done"]))
    if counts["partial"]:
        table.add_row(
            "  partial", str(counts["partial"]), "damaged: what could be decoded is there"
        )
    if counts["failed"]:
        table.add_row("  failed", str(counts["failed"]), "nothing of them is in the table")
    n_frames = int(videos["n_frames_analysed"].sum())
    share = (
        f"{int(videos['n_frames_with_face'].sum()) / n_frames:.1%} with a face" if n_frames else ""
    )
    table.add_row("frames", f"{n_frames:,}", share)
    table.add_row("faces", f"{int(videos['n_faces'].sum()):,}")
    if results.n_frames:
        speed = f"{results.n_frames / results.elapsed_s:.1f}"
        table.add_row(
            "frames/s", speed, f"{results.n_frames:,} frames in {results.elapsed_s:.1f} s"
        )
    stdout.print(table)
    for line in _problems(videos, results.others):
        stdout.print(line, markup=False)
    stdout.print(f"{'tables' if results.path.is_dir() else 'table'}: {results.path}", markup=False)
    stdout.print(f"table of videos: {results.videos_path}", markup=False)


def show_merged(merged: "Merged") -> None:
    """Print what a merged table holds and where it is."""
    incomplete = f", {merged.n_incomplete:,} of them failed or damaged" * bool(merged.n_incomplete)
    rows = counted(merged.n_rows, "row")
    stdout.print(f"{counted(len(merged.videos), 'recording')}{incomplete}, {rows}")
    for line in _problems(merged.videos):
        stdout.print(line, markup=False)
    stdout.print(f"table: {merged.path}", markup=False)
    stdout.print(f"table of videos: {merged.videos_path}", markup=False)


def show_problems(videos: "pl.DataFrame", others: Set[str] = frozenset()) -> None:
    """Print on stderr what is wrong with recordings, and nothing else.

    videos: their table. others: names of those that an earlier run had done.
    """
    for line in _problems(videos, others):
        stderr.print(line, markup=False)


def _problems(videos: "pl.DataFrame", others: Set[str] = frozenset()) -> Iterator[str]:
    for row in videos.iter_rows(named=True):
        when = f" ({EARLIER})" if row["video"] in others else ""
        if row["status"] == "failed":
            yield _printable(f"failed{when}: {row['error']}")  # which names the file
        elif row["status"] == "partial":
            yield _printable(f"partial{when}: {row['video']}: {row['error']}")
        elif row["n_frames_analysed"] == 0:
            yield _printable(f"empty: {row['video']}: no frame between the start and end asked for")


@contextmanager
def evaluation_display(*, quiet: bool) -> Iterator[Callable[["EvaluationProgress"], None]]:
    """A bar over the labelled frames; silent where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    if quiet or not stderr.is_terminal:
        yield lambda progress: None
        return
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("labelled frames"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    ) as bar:
        task = bar.add_task("reading labels", total=None)

        def show(progress: "EvaluationProgress") -> None:
            bar.update(
                task,
                description="predicting" if progress.n_done < progress.n_frames else "scoring",
                completed=progress.n_done,
                total=progress.n_frames,
            )

        yield show


def show_warnings(evaluation: "Evaluation") -> None:
    """Print on stderr what a reader of the scores must not overlook."""
    provenance = evaluation.scores["provenance"]
    for text in provenance["problems"]:
        stderr.print(_printable(text), markup=False)
    for text in provenance["trained_on"]:
        stderr.print(f"WARNING: {_printable(text)}", style="bold red", markup=False)


def show_evaluation(evaluation: "Evaluation") -> None:
    """Print the scores with their intervals, beside the paper's, and what is not in them."""
    scores = evaluation.scores
    overall, bootstrap = scores["overall"], scores["bootstrap"]
    names = ("rmse", "sagr", "pcc", "ccc")
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name.upper(), justify="right", no_wrap=True)
    for dimension in ("valence", "arousal"):
        found = overall[dimension]
        table.add_row(dimension, *(_in_digits(found[name]) for name in names), style="bold")
        table.add_row("  95 %", *(_interval(found[f"{name}_ci"]) for name in names))
    for source, by_dimension in scores["published"].items():
        table.add_row(f"paper, {source}", style="dim")
        for dimension, found in by_dimension.items():
            table.add_row(f"  {dimension}", *(_in_digits(found[n]) for n in names), style="dim")
    stdout.print(table)
    n, n_missing = overall["n_labelled"], overall["n_missing"]
    stdout.print(f"{counted(n, 'labelled frame')}, {overall['n_scored']:,} scored")
    if n_missing:
        how = {
            "drop": "dropped",
            "carry": "the last one before is carried on, where there is one",
            "neutral": "scored as neutral",
        }
        stdout.print(f"{n_missing:,} of them without a prediction: {how[overall['missing']]}")
    faces = scores["provenance"]["faces"]
    if faces:
        stdout.print(f"faces: {', '.join(f'{n:,} {_way(way)}' for way, n in faces.items())}")
    units = {"subject": "subjects", "video": "videos", "frame": "pictures"}[bootstrap["by"]]
    if bootstrap["n_units"] < 2:
        stdout.print(f"no intervals: they take two {units} or more with scored frames")
    else:
        stdout.print(
            f"95 % intervals: {bootstrap['n_resamples']:,} resamples of {bootstrap['n_units']:,} "
            f"{units}"
        )
    stdout.print(f"scores, frames and pictures: {evaluation.out}", markup=False)


def _way(way: str) -> str:
    """How a face was found, or why not, in words."""
    return {
        "landmarks": "by the dataset's landmarks",
        "detector": "by the detector",
        "box": "by the dataset's box, not aligned",
        "picture": "as the whole picture, not aligned",
        "no face": "not found",
        "no picture": "without a picture",
    }.get(way, way)


def _in_digits(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(found: list[float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} to {found[1]:.2f}"


@contextmanager
def training_display(*, quiet: bool) -> Iterator[Callable[["Report"], None]]:
    """A bar over the iterations with the losses of the last logged one; silent unless watched."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    if quiet or not stderr.is_terminal:
        yield lambda report: None
        return
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}", markup=False),
        console=stderr,
        transient=True,
    ) as bar:
        task = bar.add_task("loading faces", total=1, losses="", start=False)
        seed = None

        def show(report: "Report") -> None:
            nonlocal seed
            if report.seed != seed:
                seed = report.seed
                bar.reset(task, total=report.total, description=f"seed {seed}")
            bar.update(task, completed=report.entry["step"], losses=_losses(report.entry))

        yield show


def _losses(entry: dict[str, Any]) -> str:
    """A logged step in one line; what the critic does is left out where there is none."""
    words = [f"L_AV {entry['loss_av']:.3f}"]
    if "loss_critic" in entry:
        words.append(f"L_c {entry['loss_critic']:.3g}, L_adv {entry['loss_adv']:.3g}")
    if "margin_mi" in entry:
        words.append(f"margin {entry['margin_mi']:.2f} + {entry['margin_delta']:.2f}")
    if entry["n_strong"] is not None:
        words.append(f"{entry['n_strong']} strong, {entry['n_weak']} weak")
    if entry["skipped_steps"]:
        words.append(f"{entry['skipped_steps']} skipped")
    return "; ".join([*words, f"{entry['images_per_s']:.0f} images/s"])


def show_outcome(outcome: "Outcome") -> None:
    """Print the scores of a training run; mean ± standard deviation where it has several seeds."""
    n_seeds = len(outcome.scores)
    for name, by_dimension in outcome.summary().items():
        table = Table(box=None, pad_edge=False, title=name, title_justify="left")
        table.add_column("")
        for score in ("RMSE", "SAGR", "PCC", "CCC"):
            table.add_column(score, justify="right")
        for dimension, found in by_dimension.items():
            table.add_row(dimension, *(_with_deviation(found[s]) for s in found))
        stdout.print(table)
    if n_seeds > 1:
        stdout.print(f"mean ± standard deviation over {n_seeds} seeds")
    for path in outcome.models.values():
        stdout.print(f"model: {path}", markup=False)
    stdout.print(f"scores, logs and pictures: {outcome.out}", markup=False)


def _with_deviation(found: dict[str, float | None]) -> str:
    if found["mean"] is None:
        return "undefined"
    return f"{found['mean']:.3f}" + (f" ± {found['sd']:.3f}" if found["sd"] is not None else "")


def show_entries(entries: Sequence["Entry"]) -> None:
    """Print the table of models and detectors; to a file or a pipe one line each, with scores."""
    default = "* used when none is named"
    if stdout.is_terminal:
        stdout.print(_table_of(entries, with_scores=False), default, sep="\n", soft_wrap=False)
        for entry in entries:
            if entry.scores:
                stdout.print(f"\n{entry.name}", markup=False)
            for score in entry.scores:
                stdout.print(f"  {_printable(score)}", markup=False)
        stdout.print()
    else:
        Console(width=PIPE_COLUMNS).print(_table_of(entries, with_scores=True))
        stdout.print(default)
    for score, meaning in EXPLAINED.items():
        if any(shown.startswith(f"{score} ") for entry in entries for shown in entry.scores):
            stdout.print(f"{score}: {meaning}")
    for entry in entries:
        if entry.problem:
            stdout.print(_printable(f"{entry.name}: {entry.problem}"), style="red", markup=False)


def _table_of(entries: Sequence["Entry"], *, with_scores: bool) -> Table:
    """A line each; without scores narrow enough for a terminal."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "where"):
        table.add_column(column, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence", min_width=14)  # no word is cut
    if with_scores:
        table.add_column("scores")
    for entry in entries:
        table.add_row(
            Text(f"{entry.name}{' *' if entry.is_default else ''}"),
            entry.kind,
            f"{entry.where}, damaged" if entry.problem else entry.where,
            f"{entry.n_bytes / 1e6:.1f} MB",
            Text(entry.licence),
            *((Text("; ".join(entry.scores)),) if with_scores else ()),
        )
    return table


def show_info(info: "Info") -> None:
    """Print what a model or detector is: a line a fact, then its training and metrics.

    Tables of metrics are left to the card in words, where there is one.
    """
    width = max(map(len, info.facts))
    for name, text in info.facts.items():
        for i, line in enumerate(text.splitlines() or [""]):
            stdout.print(f"{'' if i else name:{width}}  {_printable(line)}", markup=False)
    metrics = _without_tables(info.metrics) if info.text else info.metrics
    for title, values in (("training", info.training), ("metrics", metrics)):
        if values:
            stdout.print(f"\n{title}", style="bold")
            for line in _tree(values, "  "):
                stdout.print(line, markup=False)
    if info.text:
        more = "All scores, what it was made from and what it is not for, in words: add --card"
        stdout.print(f"\n{more}", markup=False)


def show_card(info: "Info") -> None:
    """Print the card in words: laid out on a terminal, as the Markdown that it is to a pipe."""
    from rich.markdown import Markdown

    text = "\n".join(map(_printable, info.text.splitlines()))
    if stdout.is_terminal:
        stdout.print(Markdown(text, hyperlinks=False), soft_wrap=False)
    else:
        stdout.print(text, markup=False)


def _without_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_tables(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not _is_table(value)
    }


def _tree(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """What a card holds, a line each; numbers that belong together share one."""
    for key, value in values.items():
        name = _printable(str(key))
        if _is_table(value):
            yield f"{indent}{name}"
            yield from (f"{indent}  {_row(row)}" for row in value)
        elif not isinstance(value, Mapping):
            # An interval stands behind what it is of.
            if not key.endswith("_ci") or key.removesuffix("_ci") not in values:
                yield f"{indent}{name}  {_leaf(value, values.get(f'{key}_ci'))}"
        elif any(isinstance(v, str | Mapping) or _is_table(v) for v in value.values()) or not value:
            yield f"{indent}{name}"
            yield from _tree(value, f"{indent}  ")
        else:
            numbers = ", ".join(line.replace("  ", " ") for line in _tree(value, ""))
            yield f"{indent}{name}  {numbers}"


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _row(row: Mapping[str, Any]) -> str:
    """One of a table's: words, then numbers, with their names, without what is not there."""
    cells = [(key, value) for key, value in row.items() if value is not None]
    cells.sort(key=lambda cell: not isinstance(cell[1], str))
    return ", ".join(f"{_printable(key)} {_leaf(value)}".strip() for key, value in cells)


def _leaf(value: object, interval: object = None) -> str:
    """A value of a card: long lists as their length, numbers in three digits, an interval after."""
    if isinstance(value, float):
        shown = f"{value:.3g}" if abs(value) < 0.001 else f"{value:.3f}".rstrip("0").rstrip(".")
    elif isinstance(value, int) and not isinstance(value, bool):
        shown = f"{value:,}"
    elif isinstance(value, list | tuple):
        shown = (
            f"[{', '.join(map(_leaf, value))}]"
            if len(value) <= SHORT_LIST
            else f"{len(value):,} values"
        )
    else:
        shown = "none" if value is None else _printable(str(value))
    return f"{shown} {_leaf(interval)}" if interval else shown


def _printable(text: str) -> str:
    """Text without what would move the cursor: names of files may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_error(text: str) -> None:
    stderr.print(f"error: {_printable(text)}", markup=False)


def show_notice(text: str) -> None:
    for line in text.splitlines():  # such as a config's
        stderr.print(_printable(line), markup=False)
