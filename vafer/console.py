"""What the command line shows: progress on stderr, tables on stdout. rich lives here alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # polars and torch stand behind it, and --help must not wait for them
    from vafer.annotation import Progress, Results

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """A bar over all bytes, with frames a second and time to go; silent where nobody watches."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    if quiet or not stderr.is_terminal:
        yield lambda progress: None
        return
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.0f} frames/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[video]}", markup=False),
        console=stderr,
        transient=True,
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
    skipped = f"{results.n_skipped} finished by an earlier run" if results.n_skipped else ""
    table.add_row("videos", str(len(videos)), skipped)
    table.add_row("  done", str(counts["done"]))
    if counts["partial"]:
        table.add_row(
            "  partial", str(counts["partial"]), "damaged: what could be decoded is there"
        )
    if counts["failed"]:
        table.add_row("  failed", str(counts["failed"]), "nothing could be decoded")
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
    for line in _problems(results):
        stdout.print(line, markup=False)
    stdout.print(f"{'tables' if results.path.is_dir() else 'table'}: {results.path}", markup=False)
    stdout.print(f"table of videos: {results.videos_path}", markup=False)


def show_problems(results: "Results") -> None:
    """Print on stderr what is wrong with recordings, and nothing else."""
    for line in _problems(results):
        stderr.print(line, markup=False)


def _problems(results: "Results") -> Iterator[str]:
    for row in results.videos.iter_rows(named=True):
        if row["status"] == "failed":
            yield _printable(f"failed: {row['error']}")  # which names the file
        elif row["status"] == "partial":
            yield _printable(f"partial: {row['video']}: {row['error']}")
        elif row["n_frames_analysed"] == 0:
            yield _printable(f"empty: {row['video']}: no frame between the start and end asked for")


def _printable(text: str) -> str:
    """Text without what would move the cursor: names of files may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_error(text: str) -> None:
    stderr.print(f"error: {_printable(text)}", markup=False)


def show_notice(text: str) -> None:
    stderr.print(text, markup=False)
