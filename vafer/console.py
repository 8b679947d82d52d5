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
        TextColumn("{task.fields[done]}/{task.fields[videos]} videos"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.0f} frames/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[video]}", markup=False),
        console=stderr,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0, done=0, videos=0, rate=0.0, video="", start=False)

        def show(progress: "Progress") -> None:
            if not bar.tasks[task].started:  # only now: loading the models is no work on videos
                bar.start_task(task)
            elapsed = bar.tasks[task].elapsed or 0
            bar.update(
                task,
                completed=progress.share,
                done=progress.n_done,
                videos=progress.n_videos,
                rate=progress.n_frames / elapsed if elapsed else 0,
                video=progress.video or "",
            )

        yield show


def show_results(results: "Results") -> None:
    """Print the summary of a run, and each recording that failed or is damaged, with the reason."""
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
    for row in videos.filter(videos["status"] != "done").iter_rows(named=True):
        stdout.print(f"{row['status']}: {row['video']}: {row['error']}", markup=False)
    stdout.print(f"table: {results.path}", markup=False)


def show_error(text: str) -> None:
    stderr.print(f"error: {text}", markup=False)


def show_notice(text: str) -> None:
    stderr.print(text, markup=False)
