"""The No-U-Turn sampler: NumPyro's kernel, stepped in blocks by a loop of our own.

Each chain is compiled as one chain and the chains run in threads, as compiled code releases the interpreter.
Measured on two cores, 4 chains x 2000 steps of a 3-component mixture, without compilation:

    rows   threads   one after another   chains under vmap   vmap of 2 in 2 threads
      82    0.13 s              0.18 s              2.97 s                   2.44 s
    1000    0.66 s              1.25 s              5.88 s                   3.98 s

Under vmap every chain waits for the deepest tree and every branch is computed; it also compiles twice as
long. And the draws of a chain do not depend on how many cores there are, nor, unless all chains together suggest the
coordinates (see `lowrank.py`), on how many chains.

The metric, measured on the same cores: 4 chains x (1000 + 1000) steps begun around the mode, mean of two seeds; the
smallest bulk effective sample size over the parameters per second with compilation counted, per second of sampling
alone, and per thousand gradients. Low-rank is here BlackJAX 1.7.1 with its Fisher-divergence adaptation (rank 10,
begun with the gradient); the other two are NumPyro's, begun with the curvature at the mode:

    problem                          diagonal            dense               low-rank
    3-component mixture, 8 dims       369  3625    9      398  2717    9      131  1871    7
    mixture of regressions, 29 dims   361   477   10     1574  4978  180      293   432   14
    hidden Markov model, 6 dims      1331  5096  166     1382  6058  202      852  4621  179

So dense is the default there, and nothing is lost where parameters do not correlate. With more parameters a warm-up
tells no dense metric: its covariances are nearly singular, and trajectories have hundreds of steps. The smallest
effective sample size per thousand gradients, those of the tuning included, and how many thousands of them the run
took (one seed; low-rank is that of `lowrank.py`, which chains move in by NumPyro's diagonal adaptation):

    problem                                       diagonal        dense     low-rank
    Gaussian, 3 long directions, 60 dims        2.0   165     7.7   566     54    72
    the same, 200 dims                          1.0   122                   73   117
    the same, 400 dims (no curvature)           0.4   136                   48   139
    mixture with 55 group effects, 61 dims       20   103      13   323     42    86
    mixture with 100 group effects, 106 dims     13   107     5.3   765     37   112

At 200 dims after 500 steps of tuning the dense metric made 0.9 effective draws per thousand gradients of the draws
alone, with 750 steps a draw, and BlackJAX's low-rank one 53. So low-rank is the default from 51 on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo

from marginalia.infer import chains as threads
from marginalia.infer import check, edge, lowrank, modes
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.jumps import Jumps, jumps_between
from marginalia.infer.options import NUTS
from marginalia.infer.problem import Problem, as_key, key_data
from marginalia.infer.progress import Progress
from marginalia.infer.reached import UNJUDGED
from marginalia.infer.result import Result, stopped
from marginalia.infer.search import search
from marginalia.precision import in_float64
from marginalia.running import Threads

BLOCK = 50  # steps in one compiled call: between two of them there is progress and a chance to stop
BETWEEN_JUMPS = 10  # steps between two jumps, where there are modes to jump between
LOW_RANK = "low-rank"
MOST_DENSE = 50  # parameters, where the metric is not asked for: a warm-up's draws do not tell more correlations
FEWEST_STAGED = 100  # steps of tuning that are worth two halves
MOST_HALVINGS = 4  # of the step size, where draws diverged and the run may be prolonged
HOPELESS_RHAT = 1.2  # after the first doubling: such chains sit in different modes, and more draws do not help


@dataclass(frozen=True)
class Begin:
    """Where the chains begin and with which metric.

    Attributes:
        points: `(chain, dimension)`, with their log densities and gradients.
        metric: Initial inverse mass matrix of each chain, `(chain, dimension)` or `(chain, dimension, dimension)`.
    """

    points: np.ndarray
    log_density: np.ndarray
    gradients: np.ndarray
    metric: np.ndarray


def run(
    problem: Problem,
    options: NUTS,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior.

    Raises:
        FitError: No start has a finite density.
        KeyboardInterrupt: Stopped by the user before there was one draw after tuning. Later the draws made so
            far are returned, and the findings say so.
    """
    sampler = Sampler(problem, options)
    with Threads(1) as pool:
        # The sampler compiles while the starts run.
        compiling = pool.submit(in_float64(sampler.compile))
        clock = time.perf_counter()
        weighed = search(problem, options.starts, rng, progress, checkpoint.part("modes"))
        seconds_starts = time.perf_counter() - clock
        compiling.result()
    result = sample(problem, sampler, weighed, rng, progress, checkpoint)
    return dataclasses.replace(result, info={**result.info, "seconds_starts": seconds_starts})


def sample(
    problem: Problem,
    sampler: Sampler,
    weighed: modes.Modes,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior, the modes being known."""
    options = sampler.options
    clock = time.perf_counter()
    sampler.jumps = jumps_between(problem, weighed)
    sampler.block = sampler.room if sampler.jumps is None else min(BETWEEN_JUMPS, sampler.room)
    saved = checkpoint.part("chains").load()
    if saved is not None:
        chains = sampler.restore(saved)
    else:
        begin = _begin(problem, weighed, options, rng)
        frame = _first_frame(problem, weighed) if sampler.metric == LOW_RANK else None
        bits = key_data(rng, options.chains)
        chains = sampler.start(begin, bits, frame, key_data(rng, options.chains) if sampler.staged else None)
    if chains.later is not None:
        chains = _second_stage(sampler, chains, weighed, progress, checkpoint.part("chains"))
    drawn = _until_content(problem, sampler, chains, progress, checkpoint.part("chains"))
    report = weighed.found.report(problem.jacobian, weighed.chosen)
    made = _unjudged(problem, options, drawn)
    draws, asked = made.draws, made.info["options"]
    missed = modes.unvisited(problem, weighed, drawn.points)
    findings = stopped(chains.interrupted, drawn.points.shape[1], chains.wanted) + missed
    findings += check.hmc(draws, drawn.stats, asked)
    findings += edge.findings(weighed.found.optimiser, drawn.points, drawn.stats["diverging"])
    info = {
        "options": asked,
        "agreement": report.sentence,
        "starts": weighed.found.total,
        "step_size": [float(size) for size in drawn.stats["step_size"][:, -1]],
        "divergences": int(drawn.stats["diverging"].sum()),
        "gradient_evaluations": drawn.evaluations,
        "halvings": chains.halvings,
        "missed_modes": bool(missed),
        "interrupted": chains.interrupted,
        "seconds_sampling": time.perf_counter() - clock,
    }
    return Result("nuts", draws, drawn.stats, report, findings, info)


def _unjudged(problem: Problem, options: NUTS, drawn: Drawn) -> Result:
    """The draws after tuning; they are what the run has in hand from now on."""
    info = {"options": dataclasses.asdict(options)}
    result = Result("nuts", problem.constrain(drawn.points), drawn.stats, info=info)
    problem.reached.keep(result, UNJUDGED)
    return result


def _until_content(
    problem: Problem, sampler: Sampler, chains: Chains, progress: Progress, checkpoint: Checkpoint
) -> Drawn:
    """The draws asked for; then, up to `max_draws`, twice as many until nothing is found that more would mend.

    Where draws diverged, the step size is halved and the draws begin again, with no tuning: the metric stays.
    What is decided depends on the draws alone, so on the seed alone.
    """
    options = sampler.options
    most = max(options.draws, options.max_draws or 0)
    drawn: Drawn | None = None
    while True:
        wanted = chains.wanted
        sampler.advance(chains, chains.first + wanted, progress, checkpoint)
        drawn = sampler.gather(chains, wanted) or drawn
        if drawn is None:
            raise KeyboardInterrupt
        if chains.interrupted or options.max_draws is None:
            return drawn
        if drawn.stats["diverging"].any() and chains.halvings < MOST_HALVINGS:
            sampler.halve(chains)
            continue
        if 2 * wanted > most or 2 * drawn.evaluations > sampler.most_gradients:
            return drawn
        draws = problem.one_labelling(_unjudged(problem, options, drawn).draws, drawn.stats["lp"])
        doubt = check.doubt(draws)
        if not doubt.any or (wanted > options.draws and doubt.worst_rhat > HOPELESS_RHAT):
            return drawn
        chains.wanted *= 2


def _begin(problem: Problem, weighed: modes.Modes, options: NUTS, rng: np.random.Generator) -> Begin:
    """Chains begin around each mode of comparable mass; those of one mode at the same labelling of the components."""
    counts = modes.shares(weighed, options.chains)
    parts = [modes.around(problem, weighed, count, rng, mode) for mode, count in enumerate(counts)]
    points, values, gradients = (np.concatenate(column) for column in zip(*parts, strict=True))
    kind = metric_of(problem, options)
    if kind == LOW_RANK or not weighed.comparable:
        one = np.eye(problem.dimension) if kind == "dense" else np.ones(problem.dimension)
        return Begin(points, values, gradients, np.stack([one] * options.chains))
    covariances = np.repeat([m.curvature.covariance for m in weighed.comparable[: len(counts)]], counts, axis=0)
    metric = covariances if kind == "dense" else np.diagonal(covariances, axis1=1, axis2=2).copy()
    return Begin(points, values, gradients, metric)


def metric_of(problem: Problem, options: NUTS) -> str:
    """The metric that is asked for, or the one that suits the number of parameters."""
    if options.metric is None:
        return "dense" if problem.dimension <= MOST_DENSE else LOW_RANK
    return options.metric


def _first_frame(problem: Problem, weighed: modes.Modes) -> lowrank.Frame:
    """That of the curvature at the mode, where there is one."""
    if not weighed.comparable:
        return lowrank.plain(problem.dimension)
    return lowrank.of_covariance(weighed.comparable[0].curvature.covariance)


def _second_stage(
    sampler: Sampler, chains: Chains, weighed: modes.Modes, progress: Progress, checkpoint: Checkpoint
) -> Chains:
    """The first half of the tuning, then chains that go on from there in the coordinates that all of them suggest.

    Raises:
        KeyboardInterrupt: Stopped by the user; the checkpoint goes on from there.
    """
    assert chains.later is not None
    sampler.advance(chains, sampler.tune, progress, checkpoint)
    if chains.interrupted:
        raise KeyboardInterrupt
    made = len(chains.pieces[0]) * sampler.block
    points = chains.part(0, made // 2, made)
    flat = points.reshape(-1, points.shape[2])
    flat = flat[np.linspace(0, len(flat) - 1, min(len(flat), lowrank.MOST_DRAWS)).round().astype(int)]
    ends = points[:, -1]
    evaluate = weighed.found.optimiser.evaluate
    slopes = evaluate(flat)[1]
    frame = lowrank.of_draws(flat if sampler.jumps is None else sampler.jumps.around_means(flat), slopes)
    begin = Begin(ends, *evaluate(ends), np.ones(ends.shape))
    again = sampler.start(begin, chains.later, frame, None)
    again.spent = int(chains.part(4, 0, made).sum()) + len(flat) + len(ends)
    checkpoint.save(again.kept, now=True)
    return again


@dataclass(frozen=True)
class Drawn:
    """Draws after tuning: points `(chain, draw, dimension)`, statistics, gradients evaluated in all."""

    points: np.ndarray
    stats: dict[str, np.ndarray]
    evaluations: int


@dataclass
class Chains(threads.Chains):
    """Chains of NUTS on their way.

    Attributes:
        wanted: How many draws are to be made.
        first: The first step whose draw is kept.
        halvings: How often the step size was halved.
        frame: The coordinates that they move in, where it is not the problem's own.
        later: Where this is the first half of the tuning: the random bits of the second.
        spent: Gradients evaluated before.
    """

    wanted: int = 0
    first: int = 0
    halvings: int = 0
    frame: lowrank.Frame | None = None
    later: np.ndarray | None = None
    spent: int = 0

    def kept(self) -> dict[str, Any]:
        frame = None if self.frame is None else list(self.frame)
        names = ("wanted", "first", "halvings", "later", "spent")
        return {**super().kept(), "frame": frame, **{name: getattr(self, name) for name in names}}


class Sampler:
    """NumPyro's kernel for one problem: `compile` once, then `run`.

    Attributes:
        options: Those of the run.
        most_gradients: Draws are not doubled where that would take more.
        metric: What the tuning adapts.
        staged: Whether the tuning has two halves.
        tune: Steps of the tuning, or of each half.
        room: Steps that one compiled call has room for.
        block: Steps of one call.
        jumps: Made after each block of draws, where there are several modes.
    """

    def __init__(self, problem: Problem, options: NUTS, most_gradients: float = np.inf) -> None:
        self._problem = problem
        self.most_gradients = most_gradients
        self.options = options
        self.metric = metric_of(problem, options)
        # With a metric of low rank the tuning has two halves: the first one's draws give the second its coordinates.
        self.staged = self.metric == LOW_RANK and options.tune >= FEWEST_STAGED
        self.tune = -(-options.tune // 2) if self.staged else options.tune
        self._init, self._step = hmc(potential_fn_gen=self._potential, algo="NUTS")
        self.room = self.block = min(BLOCK, self.tune + options.draws)
        self.jumps: Jumps | None = None
        self._compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def _potential(self, given: Any) -> Callable[[jax.Array], jax.Array]:
        frame, data = given
        if frame is None:
            return lambda flat: -self._problem.log_density(flat, data)
        return lambda flat: -self._problem.log_density(frame.out(flat), data)

    def _start(
        self,
        point: jax.Array,
        value: jax.Array,
        gradient: jax.Array,
        metric: jax.Array,
        bits: jax.Array,
        given: Any,
    ) -> Any:
        options = self.options
        return self._init(
            ParamInfo(point, -value, -gradient),
            self.tune,
            inverse_mass_matrix=metric,
            dense_mass=self.metric == "dense",
            target_accept_prob=options.target_accept,
            max_tree_depth=options.max_tree_depth,
            model_args=(given,),
            rng_key=as_key(bits),
        )

    def _blocked(self, state: Any, given: Any, steps: Any) -> tuple[Any, tuple[Any, ...]]:
        """So many steps, and what is kept of each: arrays with room for `room` steps."""
        frame = given[0]

        def one(state: Any) -> tuple[Any, tuple[Any, ...]]:
            new = self._step(state, (given,))
            numbers = (
                new.z if frame is None else frame.out(new.z),
                new.potential_energy,
                new.energy,
                new.diverging,
                new.num_steps,
                new.accept_prob,
                state.adapt_state.step_size,
            )
            return new, numbers

        def body(i: Any, carry: tuple[Any, tuple[Any, ...]]) -> tuple[Any, tuple[Any, ...]]:
            state, numbers = one(carry[0])
            return state, tuple(all_.at[i].set(new) for all_, new in zip(carry[1], numbers, strict=True))

        kept = tuple(jnp.zeros((self.room, *s.shape), s.dtype) for s in jax.eval_shape(one, state)[1])
        return jax.lax.fori_loop(0, steps, body, (state, kept))

    def compile(self) -> None:
        """Trace and compile, without running anything; may be called from another thread."""
        o = self.options
        key = "nuts", self.metric, self.tune, o.target_accept, o.max_tree_depth, self.room
        if key not in self._problem.programs:
            self._problem.programs[key] = self._compile()
        self._compiled, self._template = self._problem.programs[key]

    def _compile(self) -> tuple[tuple[Callable[..., Any], Callable[..., Any]], Any]:
        size = self._problem.dimension
        number = jax.ShapeDtypeStruct((), np.float64)
        vector = jax.ShapeDtypeStruct((size,), np.float64)
        metric = jax.ShapeDtypeStruct((size, size) if self.metric == "dense" else (size,), np.float64)
        bits = jax.ShapeDtypeStruct((2,), np.uint32)
        frame = lowrank.plain(size) if self.metric == LOW_RANK else None
        given = frame, self._problem.data
        start = jax.jit(self._start).lower(vector, number, vector, metric, bits, given)
        state = start.out_info
        block = jax.jit(self._blocked).lower(state, given, jax.ShapeDtypeStruct((), np.int64))
        return (start.compile(), block.compile()), state

    def start(
        self, begin: Begin, bits: np.ndarray, frame: lowrank.Frame | None = None, later: np.ndarray | None = None
    ) -> Chains:
        """The chains before their first step; with a metric of low rank, in a frame."""
        if self._compiled is None:
            self.compile()
        assert self._compiled is not None
        start, given = self._compiled[0], (frame, self._problem.data)
        points, slopes = begin.points, begin.gradients
        if frame is not None:
            points = np.stack([frame.inside(point) for point in points])
            slopes = np.stack([frame.gradient(slope) for slope in slopes])
        states = [
            start(points[c], begin.log_density[c], slopes[c], begin.metric[c], bits[c], given)
            for c in range(self.options.chains)
        ]
        return Chains(threads.begin(states), wanted=self.options.draws, first=self.tune, frame=frame, later=later)

    def restore(self, saved: dict[str, Any]) -> Chains:
        """The chains as a checkpoint kept them."""
        if self._compiled is None:
            self.compile()
        more = {name: saved[name] for name in ("wanted", "first", "halvings", "later", "spent")}
        more["frame"] = None if saved["frame"] is None else lowrank.Frame(*saved["frame"])
        return Chains(threads.restore(self._template, saved), **more)

    def halve(self, chains: Chains) -> None:
        """Halve the step size, and keep no draw made so far."""
        for c, (state, pieces) in enumerate(chains.held):
            adapt = state.adapt_state
            half = np.asarray(adapt.step_size) / 2
            chains.held[c] = state._replace(adapt_state=adapt._replace(step_size=half)), pieces
        chains.first = len(chains.pieces[0]) * self.block
        chains.halvings += 1

    def advance(self, chains: Chains, steps: int, progress: Progress, checkpoint: Checkpoint) -> None:
        """All chains to `steps` steps or a little more, a block at a time, in threads; stops when interrupted."""
        assert self._compiled is not None
        block, given = self._compiled[1], (chains.frame, self._problem.data)
        progress.stage("sampling", len(chains.held) * steps)

        def step(state: Any, pieces: list[list[np.ndarray]]) -> tuple[Any, list[np.ndarray]]:
            state, numbers = block(state, given, self.block)
            if (len(pieces) + 1) * self.block >= chains.first:
                state = self._jumped(state, chains.frame, len(pieces))
            return state, [np.asarray(part)[: self.block] for part in numbers]

        def tell() -> None:
            done = sum(min(len(p) * self.block, steps) for p in chains.pieces)
            progress.update(done, f"{self._divergences(chains)} divergences")

        threads.advance(chains, -(-steps // self.block), step, tell, lambda now: checkpoint.save(chains.kept, now=now))

    def _jumped(self, state: Any, frame: lowrank.Frame | None, number: int) -> Any:
        """The chain after a try to jump to another mode; its randomness is that of the chain and `number`."""
        if self.jumps is None:
            return state
        point, slope = np.asarray(state.z), -np.asarray(state.z_grad)
        if frame is not None:
            point, slope = frame.out(point), slope * 0.0  # the slope is needed again only where the jump is made
        rng = np.random.default_rng([*map(int, np.asarray(jax.random.key_data(state.rng_key))), number])
        value = -np.asarray(state.potential_energy)
        new, new_value, new_slope = (part[0] for part in self.jumps(point[None], value[None], slope[None], rng))
        if np.array_equal(new, point):
            return state
        if frame is not None:
            new, new_slope = frame.inside(new), frame.gradient(new_slope)
        return state._replace(z=new, potential_energy=-new_value, z_grad=-new_slope)

    def _divergences(self, chains: Chains) -> int:
        first = chains.first // self.block
        skip = chains.first - first * self.block
        return sum(int(np.concatenate([q[3] for q in p[first:]])[skip:].sum()) for p in chains.pieces if p[first:])

    def gather(self, chains: Chains, wanted: int) -> Drawn | None:
        """The first `wanted` draws after tuning, cut to the shortest chain; None where some chain has none."""
        pieces, first = chains.pieces, chains.first
        length = min(min(len(p) for p in pieces) * self.block, first + wanted)
        if length <= first:
            return None
        evaluations = chains.spent + int(sum(piece[4].sum() for chain in pieces for piece in chain))

        def joined(part: int) -> np.ndarray:
            return np.stack([np.concatenate([piece[part] for piece in chain])[first:length] for chain in pieces])

        steps = joined(4)
        stats = {
            "lp": -joined(1),
            "energy": joined(2),
            "diverging": joined(3),
            "n_steps": steps,
            "tree_depth": np.floor(np.log2(steps)).astype(np.int64) + 1,
            "acceptance_rate": joined(5),
            "step_size": joined(6),
            "reached_max_tree_depth": steps >= 2**self.options.max_tree_depth - 1,
        }
        return Drawn(joined(0), stats, evaluations)
