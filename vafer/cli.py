"""The commands: parse, call a function, show. Heavy imports happen inside: --help is quick."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vafer import __version__, console
from vafer.errors import OutputError, UsageError, VaferError
from vafer.options import BATCH_SIZE, STRIDE, DetectorOptions, Sampling, Shard, SplitOptions

app = typer.Typer(
    name="vafer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs flow to the width of the terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main() -> None:
    """Entry point of the `vafer` program."""
    # Libraries that are being imported may swallow the exception of a Ctrl-C, or trip over it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of `vafer … &` in a script
        signal.signal(signal.SIGINT, _quit_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what it cannot encode
            stream.reconfigure(errors="backslashreplace")
    app()


def _quit_at_once(number: int, frame: object) -> None:
    # Written as it is: the console would import more, and may be in the middle of importing.
    show_cursor = b"\x1b[?25h\n" if os.isatty(2) else b""
    os.write(2, show_cursor + b"error: interrupted before anything was done\n")
    os._exit(EXIT_INTERRUPTED)


_interrupted = False


def _interrupt(number: int, frame: object) -> None:
    """The first Ctrl-C raises, and what is at work is dropped in order; a second one is heeded at
    once, which costs nothing that is finished."""
    global _interrupted
    if _interrupted:
        os._exit(EXIT_INTERRUPTED)
    _interrupted = True
    raise KeyboardInterrupt


def _interrupts_raise() -> None:
    """From here on there is work to keep: Ctrl-C raises, and what is finished is kept.

    Called again with each progress, it raises what was swallowed: an exception in a destructor,
    such as decord's, is printed and forgotten.
    """
    if signal.getsignal(signal.SIGINT) is _quit_at_once:
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # what job schedulers send
        signal.signal(signal.SIGTERM, _interrupt)
    if _interrupted:
        raise KeyboardInterrupt


def _notices(*, quiet: bool) -> Callable[[str], None]:
    """Prints a run's notices; `quiet`: none but the licence of what is about to be downloaded.

    From that one on an interrupt raises, so that nothing is left of the download.
    """

    def notice(text: str) -> None:
        from vafer.pulling import Licence

        if isinstance(text, Licence):
            _interrupts_raise()
        if not quiet or isinstance(text, Licence):
            console.show_notice(text)

    return notice


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vafer {__version__}")
        raise typer.Exit


@app.callback()
def vafer(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Valence and arousal of every face in every frame of your recordings."""


@app.command()
def annotate(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Videos, folders of numbered pictures, single pictures, or folders to search for "
            "the first two.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="NAME.parquet: one table of all. Anything else: a folder, one table per video.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A name of `vafer models list`, a .safetensors file, or a run folder.",
            show_default="the embedded one",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Face detector: a name of `vafer models list`, or an ONNX file (SCRFD or YuNet). "
            "An insightface pack such as buffalo_l is downloaded once (non-commercial research "
            "only).",
            show_default="the embedded one",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    every: Annotated[
        int, typer.Option(metavar="N", help="Analyse every Nth frame only.", min=1)
    ] = Sampling.every,
    fps: Annotated[
        float | None, typer.Option(metavar="F", help="Analyse F frames a second only.")
    ] = None,
    start: Annotated[
        float | None, typer.Option(metavar="S", help="Begin at S seconds of each video.", min=0)
    ] = None,
    end: Annotated[
        float | None, typer.Option(metavar="S", help="Stop before S seconds of each video.", min=0)
    ] = None,
    det_size: Annotated[
        int,
        typer.Option(
            help="Frames are shrunk, never enlarged, to this longer side. Faces that are then "
            "below some 15 pixels are seldom found.",
            min=STRIDE,
        ),
    ] = DetectorOptions.size,
    det_threshold: Annotated[
        float, typer.Option(help="Least score of a face, above 0 and below 1.")
    ] = DetectorOptions.threshold,
    min_face: Annotated[
        float,
        typer.Option(metavar="PX", help="Least shorter side of a face, in frame pixels.", min=0),
    ] = DetectorOptions.min_face,
    max_faces: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep the N best-scored faces of a frame.", min=1),
    ] = None,
    detect: Annotated[
        str,
        typer.Option(
            help="full: look for faces in every whole frame; search: mostly around those of the "
            "frame before; auto: search on a CPU, with detectors for which both agree."
        ),
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Faces per prediction.", min=1)
    ] = BATCH_SIZE,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Recordings at work at once, each decoded in a process of its own; 1: all in one "
            "process.",
            show_default="one a core, at most 16",
            min=1,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do part I, from 1, of N only, for job arrays; `vafer merge` joins their outputs.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the results that are there, and start anew.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
) -> None:
    """Write the valence and arousal of every face, frame by frame, into a Parquet table.

    The same command again goes on where the last run stopped. Exit code 0: all done; 1: some videos
    failed or are damaged, the rest is written; 2: nothing was done; 130: interrupted, what is
    finished is kept.
    """
    with _errors_shown():
        sampling = Sampling(every=every, fps=fps, start_s=start, end_s=end)
        detection = DetectorOptions(
            size=det_size, threshold=det_threshold, min_face=min_face, max_faces=max_faces
        )
        part = None if shard is None else Shard.parse(shard)

        from vafer.annotation import Progress
        from vafer.annotation import annotate as run

        with console.progress_display(quiet=quiet) as show:

            def on_progress(progress: Progress) -> None:
                _interrupts_raise()
                show(progress)

            results = run(
                inputs,
                out,
                model=model,
                detector=detector,
                device=device,
                sampling=sampling,
                detection=detection,
                detect=detect,
                batch_size=batch_size,
                workers=workers,
                shard=part,
                overwrite=overwrite,
                on_progress=on_progress,
                on_notice=_notices(quiet=quiet),
            )
        if quiet:
            console.show_problems(results.videos, results.others)
        else:
            console.show_results(results)
        if results.n_incomplete:
            raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def merge(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUTPUT...",
            help="Finished outputs of `annotate`: folders, or .parquet files.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(help="NAME.parquet.", show_default=False)],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier merge left there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
) -> None:
    """Join the outputs of a job's shards into one table. They stay as they are.

    Exit code 0: merged, and what failed in the runs is named; 1: an output cannot be read, or the
    table not be written; 2: refused; 130: interrupted.
    """
    with _errors_shown(interrupted="the same command, with --overwrite, begins anew"):
        from vafer.merging import merge as run

        _interrupts_raise()
        merged = run(
            inputs,
            out,
            overwrite=overwrite,
            on_notice=console.show_notice if not quiet else lambda text: None,
        )
        if quiet:
            console.show_problems(merged.videos)
        else:
            console.show_merged(merged)


@app.command()
def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="afew-va, aff-wild, aff-wild2 or affectnet.", show_default=False
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder of the dataset.", show_default="$VAFER_DATA/<dataset>"),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Score these: a table of `annotate`, or another.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Predict with this: a name of `vafer models list`, a .safetensors file, a run "
            "folder, or a folder of runs with one model a fold.",
            show_default="the embedded one",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="train, validation or all.",
            show_default="validation; all of afew-va",
        ),
    ] = None,
    fold: Annotated[
        int | None, typer.Option(metavar="K", help="One fold of afew-va, from 0.", min=0)
    ] = None,
    n_folds: Annotated[
        int, typer.Option(metavar="N", help="Folds of afew-va.", min=2)
    ] = SplitOptions.n_folds,
    split_seed: Annotated[
        int, typer.Option(help="Of aff-wild's validation videos.")
    ] = SplitOptions.seed,
    split_fraction: Annotated[
        float, typer.Option(help="Share of those among the videos.")
    ] = SplitOptions.fraction,
    assignment: Annotated[
        Path | None,
        typer.Option(
            help="Who is in which fold or split: the split.json of another evaluation or a run.",
            show_default=False,
        ),
    ] = None,
    crops: Annotated[
        str,
        typer.Option(
            metavar="FROM",
            help="labels: faces by the dataset's landmarks and boxes; detector: as annotate does.",
        ),
    ] = "labels",
    missing: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Labelled frames without a prediction: drop them, carry the last one on, or "
            "score them as neutral.",
        ),
    ] = "drop",
    detector: Annotated[
        str | None,
        typer.Option(
            help="Face detector, as of annotate, where the dataset does not give landmarks.",
            show_default="the embedded one",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Faces per prediction.", min=1)
    ] = BATCH_SIZE,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder.", show_default="evaluations/<dataset>-<split>-<model>…"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the scores of something else there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors and warnings only.")] = False,
) -> None:
    """Score a model, or predictions, against a dataset: RMSE, SAGR, PCC, CCC with 95 % intervals.

    Writes scores.json, frames.parquet and pictures. Exit code 0: done; 1: some recordings or
    pictures could not be read, the rest is scored; 2: nothing was done; 130: interrupted, and the
    same command goes on.
    """
    with _errors_shown(interrupted="what is predicted is kept: the same command goes on"):
        from vafer.evaluation import evaluate as run
        from vafer.predicting import EvaluationProgress

        options = SplitOptions(
            split=split,
            fold=fold,
            n_folds=n_folds,
            seed=split_seed,
            fraction=split_fraction,
            assignment=assignment,
        )
        with console.evaluation_display(quiet=quiet) as show:

            def on_progress(progress: EvaluationProgress) -> None:
                _interrupts_raise()
                show(progress)

            evaluation = run(
                dataset,
                root=root,
                split=options,
                predictions=predictions,
                model=model,
                crops=crops,
                missing=missing,
                detector=detector,
                device=device,
                batch_size=batch_size,
                out=out,
                overwrite=overwrite,
                on_progress=on_progress,
                on_notice=_notices(quiet=quiet),
            )
        console.show_warnings(evaluation)
        if not quiet:
            console.show_evaluation(evaluation)
        if evaluation.scores["provenance"]["problems"]:
            raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def train(
    config: Annotated[
        str,
        typer.Option(
            help="YAML file, or the name of one that ships, such as quickstart.yaml.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the config, as in optimiser.lr=1e-3; may be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Run folder.", show_default="runs/<name of the config>")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on exactly where the run in the folder stopped.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the whole config as it would be used, and stop."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
) -> None:
    """Train valence and arousal from faces: CAF, its rivals, or plain regression.

    The run folder gets the config, logs, checkpoints, the model file for `annotate --model`, scores
    and pictures. A first Ctrl-C stops after the iteration and keeps it: `--resume` goes on. Exit
    code 0: done; 1: a loss was not finite, or a file cannot be written; 2: nothing was done; 130:
    interrupted.

    Several GPUs: `torchrun --nproc-per-node=N -m train --config …`.
    """
    with _errors_shown(
        interrupted="what is finished is kept: the same command with --resume goes on"
    ):
        from train.config import read_config, to_yaml

        settings = read_config(config, changes or [])
        if out is not None and not out.strip():
            raise UsageError("--out is empty: expected a folder")
        if dry_run:
            typer.echo(to_yaml(settings), nl=False)
            return
        from train.loop import DivergedError
        from train.run import train as run

        leads = os.environ.get("RANK", "0") == "0"
        with console.training_display(quiet=quiet or not leads) as show:
            _interrupts_raise()
            try:
                outcome = run(
                    settings,
                    Path(out or f"runs/{Path(config).stem}"),
                    resume=resume,
                    on_report=show,
                    on_notice=_notices(quiet=quiet),
                )
            except DivergedError as error:
                console.show_error(str(error))
                raise typer.Exit(EXIT_SOME_FAILED) from error
        if leads and not quiet:
            console.show_outcome(outcome)


models = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="What models and face detectors there are, and how to get others.",
)
app.add_typer(models)


@models.command("list")
def list_models() -> None:
    """List what is known by name: embedded in vafer, on this machine, or to be pulled.

    Touches no network.
    """
    with _errors_shown():
        from vafer.catalogue import entries

        console.show_entries(entries())


@models.command("info")
def model_info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH",
            help="A name of the list, a .safetensors or .onnx file, or a run folder.",
            show_default=False,
        ),
    ],
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="The card that its file holds: data, procedure, scores, what it is not for.",
        ),
    ] = False,
) -> None:
    """Show what a model or detector is: licence, input, what it was trained on, its scores.

    Touches no network: of what is not on this machine, it says what `pull` would do.
    """
    with _errors_shown():
        from vafer.catalogue import info

        found = info(name)
        if card and not found.text:
            raise UsageError(f"{name}: there is no card in words; see it without --card")
        (console.show_card if card else console.show_info)(found)


@models.command("pull")
def pull_model(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of the list.", show_default=False)
    ],
) -> None:
    """Download a model or detector that vafer may not ship, check it and keep it.

    Its licence is shown first. `http_proxy` and `https_proxy` are honoured.
    """
    with _errors_shown(interrupted="nothing was kept"):
        from vafer.store import embedded_detectors, embedded_models, pull_named

        _interrupts_raise()
        if name in (*embedded_models(), *embedded_detectors()):
            typer.echo(f"{name} is embedded in vafer: there is nothing to pull")
            return
        path, is_new = pull_named(name, on_notice=console.show_notice)
        typer.echo(f"{name} is {'now' if is_new else 'already'} at {path}")


@models.command("convert")
def convert_model(
    encoder: Annotated[
        Path, typer.Argument(metavar="ENCODER", help="As Encoder.t7.", show_default=False)
    ],
    regressor: Annotated[
        Path, typer.Argument(metavar="REGRESSOR", help="As FC_layer.t7.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="NAME.safetensors", help="File to write.", show_default=False),
    ],
) -> None:
    """Turn the two PyTorch files of CAF's authors into one model file for `annotate --model`.

    Nothing in the files is executed; a file that is there already is not overwritten.
    """
    with _errors_shown(interrupted="nothing was written"):
        from vafer.convert import convert

        _interrupts_raise()
        convert(encoder, regressor, out)
        typer.echo(f"model: {out}")


@contextmanager
def _errors_shown(
    *,
    interrupted: str = "finished videos are kept: the same command, without --overwrite, goes on",
) -> Iterator[None]:
    try:
        yield
    except VaferError as error:
        console.show_error(str(error))
        raise typer.Exit(
            EXIT_SOME_FAILED if isinstance(error, OutputError) else EXIT_USAGE
        ) from error
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # else the next one kills while Python ends
        console.show_error(f"interrupted; {interrupted}")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
