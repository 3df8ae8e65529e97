"""The commands: what each takes, and the order in which it does its work.

Anything that needs JAX is imported inside a command, so that `--help` and bad input are answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from marginalia import __version__
from marginalia.cli import outputs, show, stopping
from marginalia.data import Table, numeric_columns, numeric_names, read_table
from marginalia.errors import DataError, MarginaliaWarning, OptionError, compose

if TYPE_CHECKING:
    from marginalia.fitting import Fit
    from marginalia.models import Ready

NOT_CONVERGED = 3

app = typer.Typer(
    name="marginalia",
    cls=stopping.Stoppable,
    help="Mixtures and their kin on tables: the discretes are summed out exactly, the rest is inferred.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataFile = Annotated[Path, typer.Argument(show_default=False, help="A CSV, TSV or Parquet file.")]
FitFile = Annotated[Path, typer.Argument(show_default=False, help="A fit.nc that `marginalia fit` wrote.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        "-c",
        metavar="NAME",
        help="A column to model; repeat it for several. Without it, all numeric columns.",
    ),
]
Components = Annotated[int, typer.Option("--components", "-k", min=1, help="Number of components.")]
Method = Literal["auto", "nuts", "ensemble", "laplace", "advi", "smc", "metropolis", "slice", "map"]
Model = Annotated[Literal["gaussian-mixture"], typer.Option(help="The model.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", envvar="MARGINALIA_NO_CACHE", help="Keep no compiled programs on disk.")
]


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"marginalia {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and leave."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # `main` takes --debug out of the words before they come here; it stands here for the help alone.
    pass


@app.command()
def fit(
    data: DataFile,
    column: Columns = None,
    components: Components = 2,
    model: Model = "gaussian-mixture",
    method: Annotated[Method, typer.Option(help="How to infer.")] = "auto",
    draws: Annotated[int | None, typer.Option(min=1, help="Draws kept per chain.")] = None,
    tune: Annotated[int | None, typer.Option(min=0, help="Warm-up steps per chain.")] = None,
    chains: Annotated[int | None, typer.Option(min=1, help="Number of chains.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the run repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; made if need be.")] = Path("marginalia-out"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A file that keeps the state of the run: after a kill, the same command goes on from there."),
    ] = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Show no progress.")] = False,
    no_cache: NoCache = False,
) -> None:
    """Fit a model to the rows of a table.

    Writes fit.nc, membership.csv and report.html into a folder. Files of these names in it are replaced when
    the new ones are complete; nothing else in it is touched. Exit status 3 means that the results were
    written but are not to be trusted yet: the text says why. Ctrl-C or SIGTERM ends the run with what
    there is, which is written too: exit status 130 or 143.
    """
    table, ready, y = _prepared(data, column, components, model)
    sampler: dict[str, Any] = {"draws": draws, "tune": tune, "chains": chains}
    given = {name: value for name, value in sampler.items() if value is not None}
    chosen = _method(method, given)
    outputs.prepare_folder(out)
    if checkpoint is not None:
        outputs.prepare_file(checkpoint, "--checkpoint")
    elif seed is None:
        seed = secrets.randbelow(2**31)  # where there is a checkpoint, it keeps the seed that is drawn
    import marginalia as mg

    _compilation_cache(no_cache)
    marginal = mg.marginalize(ready, y)
    show.plan(data, ready.model_options["columns"], marginal.explain())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)  # the verdict says the same, without a line of code
        try:
            found = mg.fit(
                marginal, method=chosen, random_seed=seed, progressbar=not no_progress, checkpoint=checkpoint
            )
        except KeyboardInterrupt:
            then = "nothing was written." if checkpoint is None else f"the same command goes on from {checkpoint}."
            show.complain(f"stopped before there was anything to keep; {then}")
            raise typer.Exit(stopping.status()) from None
    stopped = bool(found.result.info.get("interrupted"))
    try:
        show.table(found.summary())
        show.verdict(found)
    except KeyboardInterrupt:
        if stopped:
            raise
        stopped = True  # the results are there: they are written all the same
    files: dict[str, outputs.Writer] = {
        "fit.nc": found.save,
        "membership.csv": lambda path: outputs.write_csv(path, *outputs.membership_rows(table, found.membership())),
        "report.html": found.report,
    }
    try:
        show.written(outputs.write_all(out, files))
    except KeyboardInterrupt:
        there = [name for name in files if (out / name).exists()]
        show.complain(f"stopped while the results were written; complete in {out}: {', '.join(there) or 'none'}.")
        raise typer.Exit(stopping.status()) from None
    show.say(f"The seed was {found.about.get('random_seed', seed)}.")
    if stopped:
        raise typer.Exit(stopping.status())
    if found.status:
        raise typer.Exit(NOT_CONVERGED)


@app.command()
def explain(
    data: DataFile, column: Columns = None, components: Components = 2, model: Model = "gaussian-mixture"
) -> None:
    """Say how the discretes would be summed out."""
    _, ready, y = _prepared(data, column, components, model)
    import marginalia as mg

    show.plan(data, ready.model_options["columns"], mg.marginalize(ready, y).explain())


@app.command()
def classify(
    fit: FitFile,
    data: DataFile,
    out: Annotated[Path | None, typer.Option(help="A CSV file; without it, the terminal.")] = None,
    no_cache: NoCache = False,
) -> None:
    """Label the rows of a new table by a saved fit.

    Gives the probability of each component for every row, and the most probable one.
    """
    if out is not None:
        outputs.prepare_file(out)
    table = read_table(data)
    found = _loaded(fit, no_cache)
    y = _shaped(numeric_columns(table, _columns_of(found, fit)))
    header, rows = outputs.membership_rows(table, found.membership(y))
    _deliver(out, header, rows)


@app.command()
def predict(
    fit: FitFile,
    out: Annotated[
        Path | None,
        typer.Option(help="A .csv file for a summary of each row, or a .nc file for all draws; else the terminal."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the draws repeatable.")] = None,
    no_cache: NoCache = False,
) -> None:
    """Draw new data from a saved fit.

    Gives the mean, sd and 89 % interval of each row, or all draws for an --out that ends in .nc.
    """
    if out is not None:
        outputs.prepare_file(out)
    found = _loaded(fit, no_cache)
    columns = _columns_of(found, fit)
    predicted = found.predict(random_seed=seed)
    if out is not None and out.suffix == ".nc":
        outputs.write_all(out.parent, {out.name: lambda path: predicted.to_netcdf(path, engine="h5netcdf")})
        show.written([out])
        return
    y = np.asarray(predicted["y"].values)
    flat = y.reshape(y.shape[0] * y.shape[1], y.shape[2], len(columns))
    _deliver(out, *outputs.prediction_rows(columns, flat, 0.89))


@app.command()
def report(
    fit: FitFile,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    no_cache: NoCache = False,
) -> None:
    """Write the report of a saved fit again."""
    outputs.prepare_file(out)
    found = _loaded(fit, no_cache)
    show.written(outputs.write_all(out.parent, {out.name: found.report}))


def _prepared(data: Path, column: list[str] | None, components: int, model: str) -> tuple[Table, Ready, np.ndarray]:
    """Read and check the table, and make the model for it."""
    table = read_table(data)
    columns = list(dict.fromkeys(column)) if column else list(numeric_names(table))
    if not columns:
        raise DataError(
            compose(
                "no column of this table looks like numbers",
                where=str(data),
                got=", ".join(table.columns),
                remedy="name one with --column to see what is wrong with it.",
            )
        )
    y = _shaped(numeric_columns(table, columns))
    if len(y) < 2 or components > len(y):
        raise DataError(
            compose(
                "there are too few rows",
                where=str(data),
                expected=f"at least {max(2, components)} rows for {components} component{'s' * (components > 1)}",
                got=f"{len(y)}",
            )
        )
    from marginalia import models

    return table, models.gaussian_mixture(y, components=components, columns=columns), y


def _shaped(y: np.ndarray) -> np.ndarray:
    """One column is (N,) to the programs, several are (N, D)."""
    return y[:, 0] if y.shape[1] == 1 else y


def _method(method: str, sampler: dict[str, Any]) -> Any:
    """The name of a method, or its options where some were given."""
    if not sampler:
        return method
    if method == "map":
        named = ", ".join(f"--{name}" for name in sampler)
        raise OptionError(
            compose(
                f"{named} cannot be used with --method map, which draws nothing",
                remedy="leave them out, or choose --method nuts.",
            )
        )
    from marginalia.infer import options

    kind = next(cls for name in options.__all__ if (cls := getattr(options, name)).__name__.lower() == method)
    known = {field.name for field in dataclasses.fields(kind)}
    if foreign := [f"--{name}" for name in sampler if name not in known]:
        raise OptionError(
            compose(
                f"{', '.join(foreign)} cannot be used with --method {method}, which has no such option",
                remedy="leave it out, or choose another method.",
            )
        )
    if method == "auto" and "draws" in sampler:
        sampler = {**sampler, "max_draws": sampler["draws"]}  # so many, and no more
    return kind(**sampler)


def _loaded(path: Path, no_cache: bool) -> Fit:
    """Load a fit together with its model."""
    import marginalia as mg

    _compilation_cache(no_cache)
    return mg.load(path)


def _columns_of(found: Fit, path: Path) -> list[str]:
    """The columns that a fit was made from."""
    columns = found.about.get("model_options", {}).get("columns")
    if not columns:
        raise DataError(
            compose(
                "this fit does not say which columns it was made from",
                where=str(path),
                expected="a fit.nc that `marginalia fit` wrote",
                remedy="use marginalia.load() in Python and give the rows to membership().",
            )
        )
    return list(columns)


def _deliver(out: Path | None, header: list[str], rows: Any) -> None:
    """Write a CSV file whole, or print it."""
    if out is None:
        outputs.write_csv(None, header, rows)
        return
    show.written(outputs.write_all(out.parent, {out.name: lambda path: outputs.write_csv(path, header, rows)}))


def _compilation_cache(off: bool) -> None:
    """Keep compiled programs in the user's cache folder; the command does this, the library only when asked."""
    if off:
        return
    from marginalia.compilation import keep_compiled

    # Without a home that can be written to all is compiled anew: slower, never wrong.
    with contextlib.suppress(OptionError):
        keep_compiled()
