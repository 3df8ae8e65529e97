"""`check`: all checks on one program, none of them a run."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger

from marginalia.checks.coincidence import coincidences
from marginalia.checks.findings import Finding, Findings
from marginalia.checks.reach import unreached
from marginalia.checks.survey import Seen, Survey, survey
from marginalia.checks.twice import observed_twice
from marginalia.checks.values import impossible_values, silenced
from marginalia.data_checks import check_arguments
from marginalia.errors import DataError, MarginaliaError, ModelError, Refusal
from marginalia.lax import Widened
from marginalia.marginal.marginal import Marginal
from marginalia.precision import float64
from marginalia.program import Program, read


def check(model: Callable[..., Any] | Marginal, *args: Any, **kwargs: Any) -> Findings:
    """Look for mistakes in a program and its data before the long run; nothing is compiled or drawn.

    Found are: latents that reach no data; the same data observed at two sites; observed values that are missing,
    infinite or outside the support, all of them; a discrete in a Python `if`; discretes that cannot be summed out;
    rows paired with components only because there are as many of both; improper priors; plates of two sizes or
    without a site. Each finding says where, and what to do. An error of the program itself is raised as it is.

    >>> print(mg.check(model, y))
    Nothing found.
    Checked: a discrete in a Python `if`; the values of 1 observed site; data observed twice; ...
    """
    if isinstance(model, Marginal):
        args, kwargs, model = model.program.args, dict(model.program.kwargs), model.program.model
    with float64():
        return _Check(model).run(args, kwargs)


@dataclass
class _Check:
    """The checks in their order; each adds what it found and what it looked at."""

    model: Callable[..., Any]
    found: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Findings:
        try:
            args, kwargs = check_arguments(self.model, args, kwargs)
        except MarginaliaError as error:
            self.found += _bad_arguments(self.model, args, kwargs, error)
            return self.stopped("all else, which needs arguments that can be used")
        try:
            sites = self.survey(args, kwargs)
        except (Refusal, ModelError) as error:
            self.found.append(Finding.of_error("python" if isinstance(error, Refusal) else "program", error))
            return self.stopped("all else, which needs a program that can be read")
        self.checked.append("a discrete in a Python `if`")
        impossible = self.look_at_data(sites)
        self.look_at_program(args, kwargs, sites, impossible)
        return self.stopped()

    def survey(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Survey:
        """The program's sites; where 32 bits meet 64 in its loops, of the program with wide ones."""
        try:
            return survey(self.model, args, kwargs)
        except TypeError:
            wide = Widened(self.model)
            with contextlib.suppress(TypeError):
                found = survey(wide, args, kwargs)
                self.model = wide
                return found
            raise

    def stopped(self, *unchecked: str) -> Findings:
        return Findings(tuple(self.found), tuple(self.checked), (*self.unchecked, *unchecked))

    def look_at_data(self, sites: Survey) -> set[str]:
        """What the sites say by themselves; the names of those whose values are impossible."""
        every = list(sites.sites.values())
        observed = sum(s.kind == "observed" for s in every)
        impossible = set()
        for seen in every:
            bad = impossible_values(seen)
            if bad:
                impossible.add(seen.name)
            self.found += [*bad, *silenced(seen)]
        self.checked.append(f"the values of {observed} observed site{'' if observed == 1 else 's'}")
        self.found += observed_twice(every)
        self.checked.append("data observed twice")
        self.found += [f for seen in every for f in _improper(seen)]
        self.found += _odd_plates(sites)
        self.checked += ["improper priors", "plates"]
        return impossible

    def look_at_program(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], sites: Survey, impossible: set[str]
    ) -> None:
        """What only the whole program can tell."""
        program, misfits = self.read(args, kwargs, impossible, sites)
        if program is None or misfits:
            self.unchecked.append("whether every latent reaches data, and shapes that match by accident")
        else:
            self.found += unreached(program, sites.sites)
            count = len(program.latents) + len(program.discretes)
            self.checked.append(f"whether {count} latent{'' if count == 1 else 's'} reach data")
            self.found += coincidences(program)
            self.checked.append("shapes that match by accident")
        if program is None or misfits or impossible:
            self.unchecked.append("whether the discretes can be summed out")
            return
        try:
            Marginal(program)
        except MarginaliaError as error:
            self.found.append(Finding.of_error("refused", error))
        self.checked.append("whether the discretes can be summed out")

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], impossible: set[str], sites: Survey
    ) -> tuple[Program | None, set[str]]:
        """The program, read past impossible values and past sites whose shapes do not fit, which are named."""
        misfits: set[str] = set()
        while True:
            model = _past(self.model, impossible, misfits) if impossible or misfits else self.model
            try:
                return read(model, args, kwargs), misfits
            except DataError as error:
                finding = Finding.of_error("shape", error)
                self.found.append(finding)
                at = {s for s in sites.sites if f"'{s}'" in finding.where} - misfits
                if not at:
                    return None, misfits
                misfits |= at
            except (Refusal, ModelError) as error:
                if not misfits:
                    self.found.append(Finding.of_error("refused" if isinstance(error, Refusal) else "program", error))
                return None, misfits


class _Past(Messenger):
    """Lets a program be read though some data are bad: values unknown at some sites, other sites left out."""

    def __init__(self, unknown: set[str], left_out: set[str]) -> None:
        super().__init__()
        self.unknown, self.left_out = unknown, left_out

    def process_message(self, message: dict[str, Any]) -> None:
        if message["type"] != "sample":
            return
        if message["name"] in self.left_out:
            message["stop"] = True
        elif message["name"] in self.unknown:
            message["value"] = jax.lax.optimization_barrier(jnp.asarray(message["value"]))


def _past(model: Callable[..., Any], unknown: set[str], left_out: set[str]) -> Callable[..., Any]:
    @functools.wraps(model)
    def lenient(*args: Any, **kwargs: Any) -> Any:
        with _Past(unknown, left_out):
            return model(*args, **kwargs)

    return lenient


def _bad_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], error: MarginaliaError
) -> list[Finding]:
    """Each argument that cannot be used; where it is not the arguments' values, the error itself."""
    if not isinstance(error, DataError):
        return [Finding.of_error("program", error)]
    found = []
    bound = inspect.signature(model).bind(*args, **kwargs).arguments
    for name, value in bound.items():
        try:
            check_arguments(lambda **_: None, (), {name: value})
        except DataError as own:
            found.append(Finding.of_error("data", own))
    return found or [Finding.of_error("data", error)]


def _improper(seen: Seen) -> list[Finding]:
    flat = seen.kind == "latent" and (seen.improper or seen.masked_out)
    if not flat:
        return []
    return [
        Finding(
            "improper",
            f"site '{seen.name}'",
            "its prior is improper, so the posterior exists only if the data alone pin it down, and there are no draws "
            "from the prior",
            expected="a prior that integrates to one",
            got="`dist.ImproperUniform`" if seen.improper else "a prior that is masked out",
            remedy="give it a wide proper prior, such as `dist.Normal(0, 10)` on the scale of the data.",
            severity="note",
        )
    ]


def _odd_plates(sites: Survey) -> list[Finding]:
    used = {name for seen in sites.sites.values() for name in seen.plates}
    found = []
    for name, sizes in sites.plates.items():
        different = sorted(set(sizes))
        if len(different) > 1:
            found.append(
                Finding(
                    "plate",
                    f"plate '{name}'",
                    "the same name stands for plates of different sizes, so results would share an axis that they do "
                    "not have in common",
                    got=f"sizes {' and '.join(map(str, different))}",
                    remedy="give each plate a name of its own.",
                )
            )
        if name not in used:
            found.append(
                Finding(
                    "plate",
                    f"plate '{name}'",
                    "no sample statement stands inside it",
                    remedy="move the sites it is meant for into the `with` block, or leave it out.",
                    severity="note",
                )
            )
    return found
