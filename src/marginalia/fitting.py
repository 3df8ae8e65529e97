"""The answer to a question: `fit()` asks it, `Fit` holds it, `load()` brings it back."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marginalia import compare, identity, labels, store, tidy, verdict
from marginalia import membership as memberships
from marginalia import predict as prediction
from marginalia.density import density
from marginalia.errors import FitError, MarginaliaWarning, OptionError, compose
from marginalia.evidence import LogEvidence, evidence_of
from marginalia.infer import Mode, Result, Starts, options_from, run
from marginalia.infer.options.meant import refuse_misplaced
from marginalia.lanes import bounds
from marginalia.marginal import Marginal, marginalize
from marginalia.marginal.marginal import recalled
from marginalia.models import Ready, build
from marginalia.ondraws import OnDraws, flatten, thin
from marginalia.recovery import Recovery
from marginalia.summary import summary

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from marginalia.plots import Plots

PREDICTIONS_AT_MODE = 1000
SUMMARISED = 100  # numbers of one deterministic site that a table still has rows for
PAIRED_DRAWS = 1000


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """What inference found, and what can be asked of it. Nothing in it changes.

    Attributes:
        data: ArviZ DataTree: posterior, sample_stats, observed_data, and log_likelihood up to 2e7 numbers; made when
            it is first asked for.
        draws: Site name to (chain, draw, *site shape); under one labelling where labels are exchangeable.
        raw: The same as the sampler gave them.
        deterministics: Deterministic sites that read no discrete, (chain, draw, *site shape); the others have values
            only beside draws of the discretes: `recover()`.
        status: What is wrong and what to do about it; empty when nothing was found.
        notes: What is good to know, as that labels switched and were put right.
        method: "nuts", "map", ...
        marginal: The program with its discretes summed out; None for a file loaded without its model.
        result: What inference handed back.
        families: The labels that are exchangeable (see `labels.Exchangeable`).
        about: Seed, versions, the time, and the name and options of a ready model.

    Example:
        >>> fit = marginalia.fit(model, y)                                # doctest: +SKIP
        >>> fit.summary(), fit.membership()["z"], fit.membership(y_new)   # doctest: +SKIP
    """

    _tree: Callable[[], xr.DataTree]
    draws: dict[str, np.ndarray]
    raw: dict[str, np.ndarray]
    status: tuple[str, ...]
    notes: tuple[str, ...]
    method: str
    marginal: Marginal | None
    result: Result
    families: tuple[labels.Exchangeable, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    deterministics: dict[str, np.ndarray] = field(default_factory=dict)
    _on_draws: OnDraws | None = None

    @cached_property
    def data(self) -> xr.DataTree:
        return self._tree()

    def summary(self) -> pd.DataFrame:
        """A table: mean, sd, 89 % interval, effective sample sizes, R-hat (also before relabelling).

        Deterministic sites of up to 100 numbers follow the latents; all are in `deterministics`.
        """
        raw = self.raw if self.families and self.method != "map" else None
        small = {n: v for n, v in self.deterministics.items() if math.prod(np.shape(v)[2:]) <= SUMMARISED}
        return summary({**self.draws, **small}, raw, self.method)

    def membership(self, *args: Any, **kwargs: Any) -> dict[str, xr.DataArray]:
        """P(z = k | data) of every discrete: `{site: DataArray (*site dims, states)}`.

        Without arguments for the fitted rows; with the model's arguments for new ones. Averaged over the
        draws.

        Raises:
            DataError: The model cannot be called with these arguments.
            FitError: The program has no discrete, or the fit was loaded without its model.
        """
        if not args and not kwargs:
            return self._membership
        return memberships.membership(self._rebound("membership", args, kwargs), self._params())

    def labels(self, *args: Any, **kwargs: Any) -> dict[str, xr.DataArray]:
        """Each element's most probable value, one by one: the argmax of `membership()`."""
        return memberships.most_probable(self.membership(*args, **kwargs))

    def recover(self, *, draws: int | None = None, random_seed: int | None = None) -> xr.Dataset:
        """Joint posterior draws of the discretes, and all deterministic sites: (chain, draw, *site shape).

        For each draw of the parameters the discretes are drawn together, given the data; deterministics that read
        them are computed from these. `draws` is how many in all (default: all that fit in 2e7 numbers).
        """
        self._needs_model("recover")
        assert self._on_draws is not None
        seed = self.about.get("random_seed") if random_seed is None else random_seed
        return Recovery(self._on_draws).joint(self.draws, draws, seed)

    def pairwise(self, first: str, second: str | None = None, *, lag: int | None = None, axis: int = -1) -> np.ndarray:
        """P(two discretes | data), averaged over the draws; see `Marginal.pairwise`.

        `fit.pairwise("z").sum(0)` of a hidden Markov chain is the expected number of transitions, (K, K).
        """
        marginal = self._needs_model("pairwise")
        params = thin(self._params(), PAIRED_DRAWS)
        rows = range(len(next(iter(params.values()))))
        total: Any = 0.0
        for i in rows:
            total = total + marginal.pairwise({n: v[i] for n, v in params.items()}, first, second, lag=lag, axis=axis)
        return np.asarray(total / len(rows))

    def predict(
        self,
        *args: Any,
        random_seed: int | None = None,
        draws: int | None = None,
        hold: str | Sequence[str] = (),
        draw: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> xr.Dataset:
        """Posterior predictive draws of the observed sites: (chain, draw, *site shape).

        `draws` is how many in all (default: all that fit in 2e7 numbers; 1000 at a mode). With the model's
        arguments for new rows. Discretes are drawn forward, so a row's prediction does not use its own
        membership; `numpyro.factor` terms do not take part (see `attrs`), so a program whose data are in
        factors alone predicts nothing, and warns. The same seed gives the same values.

        Observed sites that other sites depend on are held at what was observed where they are known for some elements
        (`obs_mask=`) or where one of their numbers serves many of another's (a parameter fixed by
        `handlers.condition`); a covariate with a distribution of its own is drawn, and what reads it follows.
        `attrs["held"]` and `attrs["covariates"]` say so site by site; `hold` and `draw` name sites to be held or drawn.

        >>> fit.predict(hold="x")["y"]                                    # doctest: +SKIP
        """
        program = self._needs_model("predict").program
        if not args and not kwargs:
            args, kwargs = program.args, dict(program.kwargs)
        draws_of = self.draws
        if self.method == "map":
            repeats = PREDICTIONS_AT_MODE if draws is None else draws
            draws_of = {n: np.repeat(np.asarray(v)[:, :1], repeats, axis=1) for n, v in self.draws.items()}
        seed = self.about.get("random_seed") if random_seed is None else random_seed
        return prediction.predict(program, draws_of, args, kwargs, random_seed=seed, limit=draws, hold=hold, draw=draw)

    def loo(self, *, unit: str | None = None) -> Any:
        """Leave-one-out cross-validation (PSIS) over independent units, as ArviZ's `ELPDData`."""
        return self._loo if unit is None else self._loo_of(unit)

    def density(self) -> xr.Dataset:
        """p(y | data) on a grid, its 89 % band and each component's part: what `plot.density()` draws."""
        return self._density

    @property
    def log_evidence(self) -> LogEvidence:
        """Log of p(data), the parameters integrated out too, with its standard error.

        Where the program has factors, it is that of the prior times its factors, whose own integral need not be one.

        Raises:
            FitError: The method estimates no evidence.
        """
        return evidence_of(self.result)

    @property
    def plot(self) -> Plots:
        """Pictures: `plot.trace()`, `plot.membership()`, `plot.density()`; each is a matplotlib Figure."""
        from marginalia.plots import Plots  # matplotlib takes a second to import

        return Plots(self)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page: verdict, plan, table, pictures, LOO, versions."""
        from marginalia.report import write_report

        return write_report(self, path)

    def save(self, path: str | Path) -> Path:
        """Write a netCDF file that `marginalia.load` and `arviz.from_netcdf` read; whole or not at all."""
        tree = self.data.copy()
        if self.families:
            tree["raw"] = tidy.group("raw", self.raw, tree.children["posterior"])
        if self.marginal is not None and self.marginal.program.discretes:
            tree["membership"] = tidy.dataset(self._membership)
        arguments = _plain_arguments(self.marginal) if "model_name" in self.about else None
        if arguments is not None:
            tree["arguments"] = tidy.arguments(arguments)
        about = {
            **self.about,
            **({} if self._on_draws is None else {"identity": identity.of(self._on_draws, self.draws)}),
            "method": self.method,
            "deterministics": list(self.deterministics),
            "status": list(self.status),
            "notes": list(self.notes),
            "findings": list(self.result.findings),
            "info": self.result.info,
            "groups": list(self.result.groups),
            "starts": None if self.result.starts is None else dataclasses.asdict(self.result.starts),
            "families": [dataclasses.asdict(f) for f in self.families],
            "plan": str(self.marginal.explain()) if self.marginal is not None else self.about.get("plan", ""),
        }
        return store.write(path, tree, about)

    def __repr__(self) -> str:
        chains, length = np.shape(next(iter(self.draws.values())))[:2]
        sites = ", ".join(f"{n} {np.shape(v)[2:]}" if np.ndim(v) > 2 else n for n, v in self.draws.items())
        what = "the mode" if self.method == "map" else f"{chains} x {length} draws (chains x draws)"
        lines = [f"Fit by {self.method}: {what} of {sites}"]
        lines += [f"Not to be trusted yet: {s}" for s in self.status] or ["Status: nothing wrong was found."]
        return "\n".join(lines + [f"Note: {n}" for n in self.notes])

    @cached_property
    def _membership(self) -> dict[str, xr.DataArray]:
        if self._on_draws is None and "membership" in self.data.children:
            return {str(n): v for n, v in self.data["membership"].data_vars.items()}
        self._needs_model("membership")
        assert self._on_draws is not None
        return memberships.membership(self._on_draws, self._params())

    @cached_property
    def _loo(self) -> Any:
        return self._loo_of(None)

    def _loo_of(self, unit: str | None) -> Any:
        kept = store.arrays(self.data, "log_likelihood") or None
        if kept is None:
            self._needs_model("loo")
        return compare.loo(self._on_draws, self.draws, kept, unit=unit)

    @cached_property
    def _density(self) -> xr.Dataset:
        self._needs_model("density")
        assert self._on_draws is not None
        return density(self._on_draws, self._params())

    def _params(self) -> dict[str, np.ndarray]:
        return flatten(self.draws, self._needs_model("this").program.latents)

    def _rebound(self, verb: str, args: tuple, kwargs: dict[str, Any]) -> OnDraws:
        rebound = self._needs_model(verb).rebind(*args, **kwargs)
        return OnDraws(rebound.covering(self._params()) if rebound.endless else rebound)

    def _needs_model(self, verb: str) -> Marginal:
        if self.marginal is None:
            raise FitError(
                compose(
                    "this fit was loaded without its model",
                    where=f"{verb}()",
                    remedy="load it with the model and its arguments: marginalia.load(path, model, *args).",
                )
            )
        return self.marginal


def fit(
    model: Any,
    *args: Any,
    method: Any = "auto",
    random_seed: int | None = None,
    progressbar: bool = True,
    checkpoint: str | Path | None = None,
    **kwargs: Any,
) -> Fit:
    """Sum the discretes out, infer the rest, check it, and put all draws under one labelling.

    `model` is a NumPyro program, called with `args` and `kwargs`, or a `Marginal`. `method` is a name or an
    options object such as `NUTS(draws=500)`. Without `random_seed` one is drawn, and kept in
    `about["random_seed"]`. Warns with one `MarginaliaWarning` if anything is wrong with the result; `status`
    has the same sentences.

    With `checkpoint`, a path, the state of the run is kept there, from inside warm-up too: after a kill or an
    interrupt the same call goes on and ends in byte-identical draws, and once complete it gives them at once.

    An interrupt (Ctrl-C) ends the run with what there is: the draws so far, or else the mode that the run was to begin
    from, or points; `status` says which, and what it is worth.

    Raises:
        OptionError: The method or an option is not one, or the checkpoint is of other options or another seed.
        DataError, ModelError, Refusal: The program or the data cannot be used; the message says why.
        KeyboardInterrupt: Stopped by the user before there was anything to keep.
    """
    options = options_from(method)
    if isinstance(model, Marginal):
        if args or kwargs:
            raise OptionError(
                compose(
                    "a Marginal already has its data",
                    where="fit()",
                    remedy="call fit(marginal), or fit(marginal.rebind(*args)).",
                )
            )
        marginal = model
    else:
        refuse_misplaced(model, kwargs, type(options))
        marginal = recalled(model, *args, **kwargs)
    again, own = 0, checkpoint
    while True:
        engine = OnDraws(marginal)
        result = run(
            marginal,
            options,
            random_seed=random_seed,
            progressbar=progressbar,
            checkpoint=own,
            one_labelling=partial(_one_labelling, engine),
            mirrors=partial(_mirrors, engine),
        )
        if (covering := _covering(marginal, result)) is marginal:
            break
        if result.info.get("interrupted"):
            result = dataclasses.replace(result, findings=(*result.findings, verdict.CUT))
            break
        # What was cut off an endless support matters at some draw: once more with more of it.
        marginal, again = covering, again + 1
        own = None if checkpoint is None else f"{checkpoint}.{again}"
    try:
        found = finish(marginal, result, engine)
    except KeyboardInterrupt:
        stopped = verdict.unfinished(result)
        found = _fit_of(marginal, stopped, engine, stopped.draws, stopped.findings, (), (), {})
    if found.status:
        warnings.warn(MarginaliaWarning(" ".join(found.status)), stacklevel=2)
    return found


def _covering(marginal: Marginal, result: Result) -> Marginal:
    """The marginal that keeps as much of endless supports (a latent Poisson's, say) as the draws need."""
    return marginal.covering(flatten(result.draws, marginal.program.latents)) if marginal.endless else marginal


def _one_labelling(engine: OnDraws, draws: dict[str, np.ndarray], lp: np.ndarray) -> dict[str, np.ndarray]:
    """The same draws under one labelling, as `finish` will have them."""
    families = labels.find_exchangeable(engine, flatten(draws, engine.program.latents))
    return labels.relabel(engine, draws, lp, families).draws if families else draws


def _mirrors(engine: OnDraws, points: dict[str, np.ndarray]) -> tuple[tuple[str, ...], ...]:
    """The sites that are reflected when two labels change places, a tuple for each pair of labels."""
    return tuple(family.mirrors for family in labels.find_exchangeable(engine, points) if family.mirrors)


def finish(marginal: Marginal, result: Result, engine: OnDraws | None = None) -> Fit:
    """Make the Fit of a Result: relabel where labels are exchangeable, check again, build the tree."""
    engine = OnDraws(marginal) if engine is None else engine
    draws, status = result.draws, result.findings
    notes: tuple[str, ...] = ()
    chains, length = np.shape(next(iter(draws.values())))[:2]
    single = chains * length == 1
    # A mode may be symmetric by chance, so for one point the labels are tested at draws from the prior.
    tested = engine.prior(3) if single else flatten(draws, marginal.program.latents)
    # The draws of an approximation all come from the one mode that it covers, so from one labelling.
    families = () if "approximation" in result.groups else labels.find_exchangeable(engine, tested)
    if families:
        lp = np.asarray(result.stats.get("lp", np.zeros((chains, length))))
        relabelled = labels.relabel(engine, draws, lp, families)
        draws = relabelled.draws
        status = verdict.checked_again(result, draws)
        notes = verdict.words(relabelled)
    if "choice" in result.info:
        notes = (result.info["choice"], *notes)
    computed, large = Recovery(engine).deterministics(draws)
    if large:
        notes += (f"not kept because of their size: {', '.join(large)}; recover(draws=...) gives some of their draws.",)
    return _fit_of(marginal, result, engine, draws, status, notes, families, computed)


def _fit_of(
    marginal: Marginal,
    result: Result,
    engine: OnDraws,
    draws: dict[str, np.ndarray],
    status: tuple[str, ...],
    notes: tuple[str, ...],
    families: tuple[labels.Exchangeable, ...],
    computed: dict[str, np.ndarray],
) -> Fit:
    model = marginal.program.model
    about: dict[str, Any] = {
        "random_seed": result.info.get("random_seed"),
        "versions": store.versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if isinstance(model, Ready):
        about |= {"model_name": model.model_name, "model_options": dict(model.model_options)}
    tree = partial(_tree_of, engine, result, draws, computed)
    method, raw = result.method, result.draws
    return Fit(tree, draws, raw, status, notes, method, marginal, result, families, about, computed, engine)


def _tree_of(
    engine: OnDraws, result: Result, draws: dict[str, np.ndarray], computed: dict[str, np.ndarray]
) -> xr.DataTree:
    """All of a fit as one tree. The likelihood of the rows is a program of its own, and xarray takes long to import."""
    groups = {"posterior": {**draws, **computed}, "sample_stats": result.stats}
    likelihood = compare.log_likelihood(engine, draws)
    if likelihood is not None:
        groups["log_likelihood"] = likelihood
    groups["observed_data"] = {n: np.asarray(s.value) for n, s in engine.program.observed.items()}
    attrs = {"inference_library": "marginalia", "method": result.method}
    tree = tidy.tree(engine.program, groups, attrs)
    for name, variables in result.groups.items():
        tree[name] = tidy.variables(variables)
    return tree


def load(path: str | Path, model: Any = None, *args: Any, **kwargs: Any) -> Fit:
    """Read a saved fit. A ready model comes back by itself; for another, give it and its arguments again.

    They are compared with those that were fitted. New rows go to the verbs of the fit: `fit.membership(rows)`.

    Raises:
        DataError: No such file, a damaged one, or not one of ours; or it is of another model or of other data.

    Example:
        >>> fit = marginalia.load("fit.nc", model, y)                     # doctest: +SKIP
        >>> fit.membership(y_new), fit.predict(y_new)                     # doctest: +SKIP
    """
    tree, about = store.read(path)
    marginal = None
    with bounds.under(identity.limits_of(about.get("identity"))):
        if model is not None:
            marginal = model if isinstance(model, Marginal) else marginalize(model, *args, **kwargs)
        elif "model_name" in about and "arguments" in tree.children:
            ready = build(about["model_name"], about["model_options"])
            marginal = marginalize(ready, *tidy.read_arguments(tree.children["arguments"]))
    draws = store.arrays(tree, "posterior")
    computed = {name: draws.pop(name) for name in about.pop("deterministics", ())}
    engine = None
    if marginal is not None:
        if marginal.endless and draws.keys() >= marginal.program.latents.keys():
            marginal = marginal.covering(flatten(draws, marginal.program.latents))
        engine = OnDraws(marginal)
    if model is not None and engine is not None:
        identity.refuse_another(path, about.get("identity"), store.arrays(tree, "observed_data"), engine, draws)
    families = tuple(
        labels.Exchangeable(
            tuple(f["discretes"]), {n: tuple(a) for n, a in f["axes"].items()}, f["K"], tuple(f.get("mirrors", ()))
        )
        for f in about.pop("families")
    )
    raw = store.arrays(tree, "raw") if families else draws
    method, status, notes = about.pop("method"), tuple(about.pop("status")), tuple(about.pop("notes"))
    starts = _starts_in(about.pop("starts"))
    result = Result(
        method,
        raw,
        store.arrays(tree, "sample_stats"),
        starts,
        tuple(about.pop("findings")),
        about.pop("info"),
        {name: tidy.read_variables(tree.children[name]) for name in about.pop("groups", ())},
    )
    del tree.attrs[store.KEY]
    return Fit(lambda: tree, draws, raw, status, notes, method, marginal, result, families, about, computed, engine)


def _starts_in(stored: Any) -> Starts | None:
    if stored is None:
        return None
    modes = tuple(Mode({n: np.asarray(v, float) for n, v in m.pop("params").items()}, **m) for m in stored["modes"])
    rows = stored.get("rows")
    return Starts(modes, stored["total"], stored["jacobian"], None if rows is None else (int(rows[0]), int(rows[1])))


def _plain_arguments(marginal: Marginal | None) -> list[np.ndarray] | None:
    """The program's positional arguments, if they are all arrays or numbers."""
    if marginal is None or marginal.program.kwargs:
        return None
    values = [np.asarray(a) for a in marginal.program.args]
    return values if all(v.dtype.kind in "iufb" for v in values) else None
