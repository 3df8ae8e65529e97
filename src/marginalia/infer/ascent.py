"""Climb the ELBO by stochastic gradients until the average of the iterates has settled.

At one step size the iterates of a stochastic optimiser wander around the optimum; their average does not (Polyak and
Juditsky 1992). So: run at one step size until the iterates are stationary (split R-hat) and their average is precise
(its Monte Carlo error), as Dhaka, Catalina, Andersen, Magnusson, Huggins and Vehtari (2020, "Robust, accurate
stochastic optimization for variational inference") do; then quarter the step size, and stop when the average no longer
moves (Welandawe, Andersen, Vehtari and Huggins 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.infer.checkpoint import NOWHERE, Checkpoint, leaves, rebuild
from marginalia.infer.guides import Frame, Guide, standard_noise
from marginalia.infer.problem import as_key, key_data
from marginalia.infer.progress import Progress
from marginalia.infer.targets import Target

BLOCK = 100  # steps in one compiled call: between two of them there is progress and a chance to stop
PART = 10  # iterates that are averaged before they are kept
MOST_STEPS = 30_000  # without a fixed number of steps: give up here
FEWEST_PARTS = 50  # of one step size, before anything is judged
LONG_PARTS = 200  # of one step size, after which a family whose parameters need not settle goes on to the next
WANDER = 1 / 3  # the first part of the iterates of one step size, which is left out
LARGEST_RHAT = 1.1
SMALL = 0.02  # in standard deviations of the approximation: the error of an average that is good enough
LARGE = 0.05  # and the largest error of any single parameter
BATCHES = 10
FEWEST_DECAYING = 12 * PART * BATCHES  # a fixed number of steps of which the last quarter can still be judged
MOST_KEPT = 20_000_000  # numbers of the iterates' path
SMALLEST_RATE = 4.0**-5


@dataclass(frozen=True)
class Climbed:
    """Where the ascent ended.

    Attributes:
        parameters: The average of the last iterates, `(parameters,)`.
        elbo: One noisy estimate a step, `(steps,)`.
        r_hat: Split R-hat of the last iterates; near 1 when they no longer drift.
        error: Largest Monte Carlo error of the parameters, in standard deviations of the approximation.
        converged: Whether the iterates were stationary and their average precise.
        interrupted: Whether the user stopped it.
        forbidden: Part of the last block's draws at which the density is zero.
    """

    parameters: np.ndarray
    elbo: np.ndarray
    r_hat: float
    error: float
    converged: bool
    interrupted: bool
    forbidden: float


class Ascent:
    """The compiled optimisation of one guide: `compile` once, then `run`."""

    def __init__(
        self,
        target: Target,
        guide: Guide,
        optimizer: Any,
        samples: int,
        estimator: str,
        *,
        decays: bool,
        programs: dict[Any, Any] | None = None,
        key: Any = None,
    ) -> None:
        """In `programs`, if given, the compiled program is kept by `key`, which must name all that it depends on."""
        self._target = target
        self._guide = guide
        self._optimizer = optimizer
        self._samples = samples
        self._decays = decays
        self._path_only = estimator == "path-derivative"
        self._programs: dict[Any, Any] = {} if programs is None else programs
        self._key = key
        self._compiled: Callable[..., Any] | None = None

    def _step(self, phi: Any, key: Any, rows: Any, frame: tuple[Any, ...], data: Any) -> tuple[Any, Any, Any]:
        """Gradient and estimate of the ELBO, and how many draws the density forbids."""
        guide, (centre, root, log_det) = self._guide, frame
        place = Frame(centre, root, log_det).place
        noise = standard_noise(key, self._samples, guide.noise)
        pushed = jax.vmap(guide.push, (None, 0))
        points = pushed(phi, noise)
        value, slope = self._target.value_and_gradient(place(points), rows, data)
        possible = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope), axis=1)
        weight = jnp.where(possible, 1.0, 0.0) / jnp.maximum(jnp.sum(possible), 1)
        slope = jnp.where(possible[:, None], slope, 0.0)
        slope = slope * root if root.ndim == 1 else slope @ root
        log_q = jax.vmap(guide.log_density, (None, 0))

        def surrogate(phi: Any) -> Any:
            """Its gradient is that of the ELBO."""
            moved = pushed(phi, noise)
            rise = weight @ jnp.sum(slope * moved, axis=1)
            if self._path_only:
                # Roeder, Wu and Duvenaud (2017): the guide's own score has mean zero, so it is left out.
                return rise - weight @ log_q(jax.lax.stop_gradient(phi), moved)
            return rise + (guide.entropy(phi) if guide.entropy is not None else -weight @ log_q(phi, moved))

        elbo = weight @ (jnp.where(possible, value, 0.0) - log_q(phi, points)) + log_det
        return jax.grad(surrogate)(phi), elbo, jnp.sum(~possible)

    def _blocked(
        self, phi: Any, state: Any, rate: Any, limit: Any, bits: Any, rows: Any, frame: Any, data: Any
    ) -> tuple[Any, ...]:
        keys = jax.random.split(as_key(bits), BLOCK)

        def body(carry: tuple[Any, Any], given: Any) -> tuple[Any, Any]:
            phi, state = carry
            i, key, rows = given
            gradient, elbo, forbidden = self._step(phi, key, rows, frame, data)
            updates, new_state = self._optimizer.update(-gradient, state, phi)
            new = (phi + rate * updates, new_state)
            carry = jax.tree.map(lambda a, b: jnp.where(i < limit, a, b), new, carry)
            return carry, (carry[0], elbo, forbidden)

        (phi, state), (path, elbo, forbidden) = jax.lax.scan(body, (phi, state), (jnp.arange(BLOCK), keys, rows))
        parts = path.reshape(BLOCK // PART, PART, -1).mean(axis=1)
        seen = parts if self._guide.summary is None else jax.vmap(self._guide.summary)(parts)
        return phi, state, parts, seen, elbo, jnp.sum(jnp.where(jnp.arange(BLOCK) < limit, forbidden, 0))

    def compile(self, frame: Frame) -> None:
        """Trace and compile for frames of this one's shapes; may be called from another thread."""
        self._compiled = self._programs.get(self._key)
        if self._compiled is not None:
            return
        phi = jax.ShapeDtypeStruct(self._guide.start.shape, np.float64)
        state = jax.eval_shape(self._optimizer.init, phi)
        rows = self._target.rows_like(BLOCK)
        number = jax.ShapeDtypeStruct((), np.float64)
        whole = jax.ShapeDtypeStruct((), np.int64)
        bits = jax.ShapeDtypeStruct((2,), np.uint32)
        shapes = tuple(jax.ShapeDtypeStruct(np.shape(part), np.float64) for part in _parts(frame))
        lowered = jax.jit(self._blocked).lower(phi, state, number, whole, bits, rows, shapes, self._target.data)
        self._compiled = self._programs[self._key] = lowered.compile()

    def run(
        self,
        frame: Frame,
        steps: int | None,
        rng: np.random.Generator,
        progress: Progress,
        checkpoint: Checkpoint = NOWHERE,
    ) -> Climbed:
        """Climb `steps` steps, or until converged.

        Raises:
            KeyboardInterrupt: Stopped by the user before the first block was done.
        """
        if self._compiled is None:
            self.compile(frame)
        assert self._compiled is not None
        total = MOST_STEPS if steps is None else steps
        progress.stage("ADVI", total)
        phi: Any = np.asarray(self._guide.start, float)
        state = jax.jit(self._optimizer.init)(phi)
        pushed = jax.jit(jax.vmap(self._guide.push, (None, 0)))

        def draw(count: int) -> np.ndarray:
            return frame.place(np.asarray(pushed(phi, rng.normal(size=(count, self._guide.noise)))))

        trail = _Trail(phi, self._guide.summary, steps, decays=self._decays)
        history: list[np.ndarray] = []
        interrupted, done, forbidden = False, 0, 0.0
        saved = checkpoint.load()
        if saved is not None:
            phi, state, history = saved["phi"], rebuild(state, saved["state"]), [saved["history"]]
            done, forbidden = len(saved["history"]), saved["forbidden"]
            trail.restore(saved["trail"])
            self._target.restore(saved["target"])
            rng.bit_generator.state = saved["rng"]

        def kept() -> dict[str, Any]:
            return {
                "phi": np.asarray(phi),
                "state": leaves(state),
                "history": np.concatenate(history),
                "forbidden": forbidden,
                "trail": trail.kept(),
                "target": self._target.kept(),
                "rng": rng.bit_generator.state,
            }

        try:
            while done < total and not trail.converged:
                limit = min(BLOCK, total - done)
                given = (np.asarray(trail.rate), np.asarray(limit), key_data(rng), self._target.rows(rng, BLOCK))
                end = self._compiled(phi, state, *given, _parts(frame), self._target.data)
                phi, state = end[:2]
                parts, seen, elbo, refused = (np.asarray(part) for part in end[2:])
                forbidden = float(refused) / (limit * self._samples)
                history.append(elbo[:limit])
                done += limit
                whole = max(1, limit // PART)
                trail.add(parts[:whole], seen[:whole], done)
                if trail.restart is not None:
                    phi = trail.restart
                self._target.follow(draw)
                progress.update(done, f"ELBO {elbo[:limit].mean():.2f}")
                # At an interrupt nothing is saved: it may come in the middle of a block, the last save did not.
                checkpoint.save(kept)
        except KeyboardInterrupt:
            if not history:
                raise
            interrupted = True
        r_hat, error = trail.judge()
        return Climbed(
            trail.parameters(np.asarray(phi)),
            np.concatenate(history),
            r_hat,
            error,
            trail.converged or (steps is not None and r_hat < LARGEST_RHAT and error < LARGE),
            interrupted,
            forbidden,
        )


def _parts(frame: Frame) -> tuple[np.ndarray, ...]:
    return np.asarray(frame.centre), np.asarray(frame.root), np.asarray(frame.log_det)


class _Trail:
    """The iterates of the present step size, and what they say.

    Attributes:
        rate: What the next updates are multiplied by.
        converged: Whether the average has settled.
        restart: Where the next block is to begin, None to go on.
    """

    def __init__(self, start: np.ndarray, summary: Any, steps: int | None, *, decays: bool) -> None:
        self.rate = 1.0
        self.converged = False
        self.restart: np.ndarray | None = None
        self._summary = summary
        self._steps = steps
        self._decays = decays and steps is not None and steps >= FEWEST_DECAYING
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._parts: list[np.ndarray] = []
        self._seen: list[np.ndarray] = []
        self._kept = max(FEWEST_PARTS, MOST_KEPT // len(start))

    def add(self, parts: np.ndarray, seen: np.ndarray, done: int) -> None:
        """Take in the next iterates and their summaries, after `done` steps in all."""
        self.restart = None
        self._parts.extend(parts)
        self._seen.extend(seen)
        del self._parts[: -self._kept], self._seen[: -self._kept]
        if self._steps is None:
            self._adapt()
        elif self._decays and self.rate > _scheduled(done / self._steps):
            self._cut()

    def kept(self) -> dict[str, Any]:
        """It as a checkpoint keeps it."""
        parts, seen = (np.stack(part) if part else None for part in (self._parts, self._seen))
        return {
            "rate": self.rate,
            "converged": self.converged,
            "restart": self.restart,
            "before": self._before,
            "parts": parts,
            "seen": seen,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from there."""
        self.rate, self.converged, self.restart = kept["rate"], kept["converged"], kept["restart"]
        self._before = kept["before"]
        self._parts, self._seen = ([] if kept[name] is None else list(kept[name]) for name in ("parts", "seen"))

    def _adapt(self) -> None:
        window = _later(self._seen)
        if len(self._seen) < FEWEST_PARTS:
            return
        if not _settled(window):
            if self._summary is not None and len(self._seen) >= LONG_PARTS and self.rate > SMALLEST_RATE:
                self._cut()
            return
        average, errors = window.mean(axis=0), _errors(window)
        if self._before is not None and self.rate <= self._largest_last_rate:
            moved = np.abs(average - self._before[0])
            self.converged = bool(np.all(moved < SMALL + 4 * np.hypot(errors, self._before[1])))
        self._before = average, errors
        if not self.converged and self.rate > SMALLEST_RATE:
            if self._summary is None:
                self.restart = _later(self._parts).mean(axis=0)
            self._cut()

    @property
    def _largest_last_rate(self) -> float:
        """Parameters that need not settle are averaged over small steps only."""
        return 0.5 if self._summary is None else 0.1

    def _cut(self) -> None:
        self.rate /= 4
        self._parts.clear()
        self._seen.clear()

    def parameters(self, last: np.ndarray) -> np.ndarray:
        """The average of the iterates; the last one where the average is not of their kind."""
        if not self._parts:
            return last if self.restart is None else self.restart
        average = _later(self._parts).mean(axis=0)
        if self._summary is None:
            return average
        summary = np.asarray(jax.jit(self._summary)(average))
        seen = _later(self._seen)
        alike = np.all(np.abs(summary - seen.mean(axis=0)) < SMALL + seen.std(axis=0))
        return average if alike else last

    def judge(self) -> tuple[float, float]:
        """Largest split R-hat and largest Monte Carlo error of the iterates."""
        window = _later(self._seen)
        if len(window) < 2 * BATCHES:
            return float("inf"), float("inf")
        return float(_r_hat(window, LARGE).max()), float(_errors(window).max())


def _scheduled(part: float) -> float:
    """The rate at a part of a fixed number of steps."""
    return 1.0 if part < 0.5 else 0.25 if part < 0.75 else 0.0625


def _later(parts: list[np.ndarray]) -> np.ndarray:
    """All but the first of the iterates, `(n, ...)`."""
    return np.stack(parts[int(len(parts) * WANDER) :]) if parts else np.empty((0, 0))


def _settled(window: np.ndarray) -> bool:
    if _r_hat(window, SMALL).max() > LARGEST_RHAT:
        return False
    errors = _errors(window)
    return bool(np.sqrt(np.mean(errors**2)) < SMALL and errors.max() < LARGE)


def _r_hat(window: np.ndarray, negligible: float) -> np.ndarray:
    """Split R-hat of each parameter along one path; what differs by less than `negligible` counts as the same."""
    half = len(window) // 2
    halves = np.stack([window[:half], window[-half:]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    return np.sqrt((within + between + negligible**2) / (within + negligible**2))


def _errors(window: np.ndarray) -> np.ndarray:
    """Monte Carlo error of each parameter's average, by the means of ten stretches."""
    length = len(window) // BATCHES
    means = window[len(window) - BATCHES * length :].reshape(BATCHES, length, -1).mean(axis=1)
    return means.std(axis=0, ddof=1) / np.sqrt(BATCHES)
