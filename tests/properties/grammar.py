"""A grammar of small programs with discretes, written at random as source text.

All choices come from a `random.Random`, so hypothesis can make them (and shrink them) and a nightly run can make
them from a seed. An expression that JAX itself rejects (a shape that does not fit) is thrown away and another is
tried, so the grammar needs no types of its own. What it writes is ordinary user code: `Written.source` can be pasted
into a file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from expressions import EXPRESSIONS
from jax import lax
from numpyro import handlers
from numpyro.contrib.control_flow import scan

MOST_STATES = 2**10
MOST_ELEMENTS = 24

NAMES: dict[str, Any] = {
    "jax": jax, "jnp": jnp, "np": np, "lax": lax, "numpyro": numpyro, "dist": dist, "handlers": handlers,
}  # fmt: skip

LATENTS = {
    "a": ("dist.Normal(0., 2.)", ()),
    "mu": ("dist.Normal(0., 2.).expand([4])", (4,)),
    "t": ("dist.Normal(0., 1.).expand([4, 4]).to_event(2)", (4, 4)),
    "s": ("dist.HalfNormal(2.)", ()),
    "w": ("dist.Dirichlet(jnp.ones(3))", (3,)),
}
CONSTANTS = {
    "k3": np.array([0.3, -1.2, 0.8]),
    "k23": np.array([[0.5, -0.4, 1.1], [-0.9, 0.2, 0.7]]),
    "g": np.array([0, 1, 1, 0, 2]),
    "i3": np.array([2, 0, 1]),
}


@dataclass(frozen=True)
class Written:
    """A program as text, a point of its continuous latents, and the scale put on everything (1 for none).

    `steps` says how many steps the loops have in which discretes are sampled; `checked` whether NumPyro's validation
    is on.
    """

    source: str
    params: dict[str, np.ndarray]
    states: int
    scale: float
    steps: dict[str, int] = field(default_factory=dict)
    checked: bool = True

    @property
    def model(self) -> Callable[..., Any]:
        return compiled(self.source)


def step_by_step(f: Callable[..., Any], init: Any, xs: Any) -> Any:
    """NumPyro's `scan` as a Python loop, its sites named after the step: for brute force."""
    collected = []
    for i, x in enumerate(jnp.asarray(xs)):
        with handlers.scope(prefix=str(i)):
            init, y = f(init, x)
        collected.append(y)
    return init, jnp.stack(collected)


def compiled(source: str, loops: Callable[..., Any] = scan) -> Callable[..., Any]:
    space = {**NAMES, **CONSTANTS, "scan": loops}
    exec(compile(source, "<random program>", "exec"), space)
    return space["model"]


@dataclass
class Writer:
    """The program written so far."""

    random: random.Random
    lines: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # "i", "b" or "f"
    types: dict[str, Any] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)  # names that depend on a discrete
    params: dict[str, np.ndarray] = field(default_factory=dict)
    states: int = 1
    steps: dict[str, int] = field(default_factory=dict)

    def pick(self, options: Any) -> Any:
        return self.random.choice(list(options))

    def chance(self, percent: int) -> bool:
        return self.random.randint(1, 100) <= percent

    def name(self, stem: str) -> str:
        return f"{stem}{sum(n.startswith(stem) and n[len(stem) :].isdigit() for n in self.shapes)}"

    def known(self, name: str, shape: tuple[int, ...], dtype: Any, reads: bool) -> None:
        self.shapes[name], self.kinds[name] = shape, np.dtype(dtype).kind.replace("u", "i")
        self.types[name] = dtype
        if reads:
            self.reads.add(name)

    def look(self, expression: str) -> tuple[tuple[int, ...], Any] | None:
        """Shape and type of an expression, or None when JAX rejects it."""
        names = [n for n in self.shapes if n in expression]
        arrays = [jax.ShapeDtypeStruct(self.shapes[n], self.types[n]) for n in names]

        def run(*values: Any) -> Any:
            return jnp.asarray(eval(expression, {**NAMES, **CONSTANTS, **dict(zip(names, values, strict=True))}))

        try:
            out = jax.eval_shape(run, *arrays)
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            return None
        if math.prod(out.shape) > MOST_ELEMENTS or 0 in out.shape or len(out.shape) > 4:
            return None
        return tuple(out.shape), out.dtype

    def assign(self, expression: str, reads: bool) -> bool:
        found = self.look(expression)
        if found is None:
            return False
        name = self.name("x")
        self.lines.append(f"{name} = {expression}")
        self.known(name, *found, reads)
        return True

    def names(self, kinds: str = "ibf", reading: bool | None = None) -> list[str]:
        return [n for n in self.shapes if self.kinds[n] in kinds and (reading is None or (n in self.reads) == reading)]

    def reader(self, kinds: str = "ibf") -> str:
        """A name that reads a discrete, the latest ones more often."""
        found = self.names(kinds, True) or self.names("ibf", True)
        return found[-1] if self.chance(35) else self.pick(found)

    def any(self, kinds: str = "ibf") -> str:
        found = self.names(kinds)
        return self.reader(kinds) if self.chance(60) or not found else self.pick(found)


def write(choices: random.Random) -> Written:
    """One random program."""
    with jax.enable_x64(True):
        w = Writer(choices)
        for name, (prior, shape) in LATENTS.items():
            w.lines.append(f'{name} = numpyro.sample("{name}", {prior})')
            w.known(name, shape, jnp.float64, False)
            numbers = np.random.default_rng(choices.randint(0, 9)).normal(size=shape)
            w.params[name] = np.abs(numbers) + 0.2 if name == "s" else (
                np.exp(numbers) / np.exp(numbers).sum() if name == "w" else numbers
            )  # fmt: skip
        for i in range(choices.randint(1, 3)):
            _site(w, i)
        if w.chance(20):
            _loop(w)
        if w.chance(20):
            _scan(w)
        for _ in range(choices.randint(1, 6)):
            _statement(w)
        for i in range(choices.randint(1, 2)):
            _use(w, i)
        scale = 2.5 if w.chance(8) else 1.0
        checked = w.chance(85)
    body = [line for text in w.lines for line in text.split("\n")]
    if scale != 1.0:
        body = ["with handlers.scale(scale=2.5):", *("    " + line for line in body)]
    source = "def model():\n" + "\n".join("    " + line for line in body) + "\n"
    return Written(source, w.params, w.states, scale, w.steps, checked)


# ---- sites ------------------------------------------------------------------------------------------------------


def _site(w: Writer, i: int) -> None:
    long = w.chance(6) and w.states <= 4  # long enough for what is special about chains
    shape = w.pick([(8,), (2, 4)]) if long else w.pick([(), (2,), (3,), (3,), (4,), (2, 2), (2, 3)])
    family = w.pick(["Categorical", "Categorical", "Bernoulli", "DiscreteUniform", "Binomial"])
    size = math.prod(shape)
    k = 2 if family == "Bernoulli" or long or w.chance(50) else 3
    while not long and w.states * k**size > MOST_STATES // (8 if i == 0 else 1) and k**size > 2:
        if k > 2:
            k = 2
        else:
            shape = shape[:-1]
            size = math.prod(shape)
    if w.states * k**size > MOST_STATES:
        return
    w.states *= k**size
    name = f"z{i}"
    given = [n for n in w.shapes if n.startswith("z")]
    event, how = "", w.pick(["plate", "expand", "own", "event", "sample_shape"])
    full = how == "own" or (how == "event" and w.chance(50))
    head = shape if full else ()
    fn = _family(w, family, k, head, shape, w.pick(given) if given and w.chance(40) else None)
    found = w.look(f"jnp.zeros({fn}.batch_shape)")
    batch = found[0] if found else ()
    many = how == "sample_shape" and batch == () and shape != ()
    if how != "plate" and not many and batch != shape:
        fn = f"{fn}.expand({list(shape)})"
    if how == "event" and shape:
        event = f".to_event({w.random.randint(1, len(shape))})"
    if w.chance(10) and not many:
        mask = np.arange(size).reshape(shape) % 2 == 0 if shape and not event else bool(w.chance(50))
        fn = f"{fn}.mask(np.array({np.asarray(mask).tolist()}))"
    sample = f'{name} = numpyro.sample("{name}", {fn}{event}{f", sample_shape={shape}" if many else ""})'
    if how == "plate" and shape:
        withs = [f'numpyro.plate("p{i}_{d}", {n}, dim={d - len(shape)})' for d, n in enumerate(shape)]
        sample = f"with {', '.join(withs)}:\n    {sample}"
    if w.chance(5):
        indented = sample.replace("\n", "\n    ")
        sample = f"with handlers.mask(mask={w.pick([True, False])}):\n    {indented}"
    w.lines.append(sample)
    w.known(name, shape, jnp.int64, True)


def _loop(w: Writer) -> None:
    """A Python loop over sites with names of their own: independent, or each given the one before."""
    count = w.pick([3, 4, 5])
    if w.states * 2**count > MOST_STATES:
        return
    w.states *= 2**count
    given = w.pick([n for n in w.shapes if n.startswith("z")] or ["a"])
    prior = w.pick(
        [
            "dist.Bernoulli(logits=t[0, 0] if i == 0 else t[0, v])",
            "dist.Categorical(logits=t[:2, :2][v if i else 0])",
            f"dist.Bernoulli(logits=a + 0.3 * i * jnp.sum({given}))",
            "dist.Bernoulli(0.3)",
            "dist.Bernoulli(logits=mu[i % 4])",
        ]
    )
    shape = w.pick([(), (), (2,)])
    value = w.pick(["mu[v]", "a * v", "jnp.where(v == 1, mu[i % 4], s)", "mu[v] * k3[i % 3]"])
    event = f".expand({list(shape)}).to_event(1)" if shape else ""
    data = np.random.default_rng(w.random.randint(0, 9)).normal(size=(count, *shape)).round(2).tolist()
    outcome = w.pick(
        [
            f'numpyro.sample(f"o{{i}}", dist.Normal({value}, s){event}, obs=np.array({data})[i])',
            f'numpyro.factor(f"o{{i}}", jnp.tanh({value}) * {data}[i])' if not shape else
            f'numpyro.factor(f"o{{i}}", (jnp.tanh({value}) * np.array({data})[i]).sum())',
        ]
    )  # fmt: skip
    w.lines.append(
        f'steps = []\nfor i in range({count}):\n    v = numpyro.sample(f"v{{i}}", {prior})\n    {outcome}\n'
        f"    steps.append(v)\nx0 = jnp.stack(steps)"
    )
    w.known("x0", (count,), jnp.int64, True)


SUPPORTS = [
    "dist.Binomial(abs(V) + 1, logits=a)",
    "dist.BetaBinomial(1.5, s, 2 * abs(V) + 1)",
    "dist.DiscreteUniform(V - 2, V + 2)",
    "dist.Uniform(-1. * V - 0.5, s + V * V)",
    "dist.Uniform(-1., V)",
    "dist.LogUniform(0.1, 1. + abs(V))",
    "dist.Pareto(0.3 + abs(V), 1.5)",
    "dist.TruncatedNormal(a, s, low=V - 1.)",
    "dist.TruncatedNormal(a, s, high=1.5 * V)",
    "dist.TruncatedNormal(a, s, low=-2., high=0.5 + V * V)",
    "dist.TransformedDistribution(dist.Exponential(s), dist.transforms.AffineTransform(0.7 * V, 1.))",
    "dist.ZeroInflatedDistribution(dist.Binomial(abs(V) + 1, 0.4), gate=0.3)",
]
"""Families whose support depends on V."""


def _within(w: Writer, value: str, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """A distribution whose support depends on a value, and data that may lie outside."""
    fn = w.pick(SUPPORTS)
    numbers = np.random.default_rng(w.random.randint(0, 9))
    whole = any(name in fn for name in ("Binomial", "DiscreteUniform"))
    data = numbers.integers(0, 3, shape) if whole else numbers.gamma(2.0, 0.6, shape).round(2)
    if w.chance(30):
        fn = fn[:-1] + ", validate_args=False)"
    return fn.replace("V", f"({value})"), data


def _scan(w: Writer) -> None:
    """NumPyro's `scan`: a chain whose outcomes have supports that depend on the state."""
    count, shape = w.pick([2, 3, 4]), w.pick([(), (), (), (2,)])
    size = count * math.prod(shape)
    if w.states * 2**size > MOST_STATES:
        return
    w.states *= 2**size
    prior = w.pick(
        [
            "dist.Bernoulli(logits=t[0, last])",
            "dist.Categorical(logits=t[:2, :2][last])",
            "dist.Bernoulli(logits=a + 0.3 * last)",
            "dist.DiscreteUniform(0, 1)" if not shape else "dist.Bernoulli(logits=mu[last])",
        ]
    )
    value = w.pick(["u0", "u0", "u0 + last", "mu[u0]", "a * u0"])
    fn, data = _within(w, value, (count, *shape))
    if "mu" in value or "a *" in value:  # no whole numbers
        fn, data = f"dist.TruncatedNormal(a, s, low={value} - 1.)", (data * 0.7 - 0.4).round(2)
    lines = [f'u0 = numpyro.sample("u0", {prior})', f'numpyro.sample("e0", {fn}, obs=now)', "return u0, u0"]
    if shape:
        lines[:2] = ["with numpyro.plate('within', 2):", *("    " + line for line in lines[:2])]
    start = f"jnp.zeros({shape}, int)"
    w.lines.append(
        "def step(last, now):\n" + "\n".join("    " + line for line in lines) + "\n"
        f"u, x9 = scan(step, {start}, np.array({data.tolist()}))"
    )
    w.steps["u0"] = count
    w.known("u", shape, jnp.int64, True)
    w.known("x9", (count, *shape), jnp.int64, True)


def _family(w: Writer, family: str, k: int, head: tuple[int, ...], shape: tuple[int, ...], given: str | None) -> str:
    """A distribution of batch shape `head` (or what `given` makes of it) with k states."""
    if family == "DiscreteUniform":
        low = w.pick([-1, 1, 2])
        return f"dist.DiscreteUniform({low}, {low + k - 1})" + (f".expand({list(head)})" if head else "")
    numbers = np.random.default_rng(w.random.randint(0, 9))
    if given is not None and family != "Binomial":
        parent = w.shapes[given]
        table = f"t[:, :{k}]" if family == "Categorical" else "t[:, 0]"
        parent_fits = parent == shape or parent == ()
        index = given if parent_fits else f"jnp.sum({given}, -1)" if w.chance(50) else f"jnp.max({given})"
        found = w.look(f"jnp.zeros(jnp.shape({index}))")
        if found is not None and _fits(found[0], shape):
            return f"dist.{family}(logits={table}[{index}])"
    if family == "Categorical":
        if w.chance(30):
            return f"dist.Categorical(logits=mu[:{k}])" if not head else (
                f"dist.Categorical(logits=jnp.broadcast_to(mu[:{k}], {(*head, k)}))"
            )  # fmt: skip
        if k == 3 and not head and w.chance(30):
            return "dist.Categorical(w)"
        probs = numbers.dirichlet(np.ones(k), size=head).round(3) + 0.01
        if w.chance(8):
            probs[..., 0] = 0.0
        probs = probs / probs.sum(-1, keepdims=True)
        return f"dist.Categorical(np.array({probs.tolist()}))"
    logits = w.pick(["a", "0.4 * a - 0.3", "0.2", "mu[0]"])
    if family == "Binomial":
        count: Any = k - 1
        if head and w.chance(70):
            count = (np.arange(math.prod(head)) % k).reshape(head)
            count.flat[-1] = k - 1
        text = f"np.array({np.asarray(count).tolist()})" if np.ndim(count) else str(count)
        how = f"logits={logits}" if w.chance(50) else f"probs=jax.nn.sigmoid({logits})"
        return f"dist.Binomial({text}, {how})"
    if head:
        logits = f"({logits}) + np.array({numbers.normal(size=head).round(2).tolist()})"
    return f"dist.Bernoulli(logits={logits})" if w.chance(60) else f"dist.Bernoulli(jax.nn.sigmoid({logits}))"


def _fits(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(inner, outer) == outer
    except ValueError:
        return False


# ---- expressions, and what they are for ------------------------------------------------------------------------------


def _statement(w: Writer) -> None:
    for _ in range(12):
        if w.assign(w.pick(EXPRESSIONS)(w), True):
            return
    w.assign(f"mu[{w.reader('i')}]", True)


def _use(w: Writer, i: int) -> None:
    x = w.names("ibf", True)[-1] if w.chance(60) else w.reader()
    shape = w.shapes[x]
    safe = f"jnp.tanh(0.3 * {x})"
    seed = w.random.randint(0, 9)
    numbers = np.random.default_rng(seed)
    kind = w.pick(
        [*["Normal"] * 3, "sd", "Bernoulli", "Poisson", "Categorical", "factor", "hard", "latent", "Mvn", "support"]
    )
    name = f"y{i}"
    if kind == "factor":
        w.lines.append(f'numpyro.factor("{name}", {safe})')
        return
    if kind == "hard":
        w.lines.append(
            f'numpyro.factor("{name}", jnp.where({x} > {w.pick([0, 1])}, {w.pick(["0.0", "0.3 * a"])}, -jnp.inf))'
        )
        return
    if kind == "latent":
        w.lines.append(f'numpyro.sample("c{i}", dist.Normal({safe}, 1.0))')
        w.params[f"c{i}"] = numbers.normal(size=shape).round(2)
        return
    if kind == "Mvn" and len(shape) >= 1:
        n = shape[-1]
        obs = numbers.normal(size=shape).round(2)
        w.lines.append(
            f'numpyro.sample("{name}", dist.MultivariateNormal({safe}, np.eye({n}) + 0.3), '
            f"obs=np.array({obs.tolist()}))"
        )
        return
    if kind == "support":
        whole = w.kinds[x] == "i"
        fn, obs = _within(w, x if whole else f"({safe})", shape)
        if not whole and obs.dtype.kind == "i":
            fn, obs = f"dist.Uniform(-1., 2. + {safe})", obs * 1.0
    elif kind == "Categorical":
        obs = numbers.integers(0, 3, size=shape)
        fn = f"dist.Categorical(logits={safe}[..., None] * np.array([0.0, 1.0, -2.0]))"
    elif kind == "Bernoulli":
        obs = numbers.integers(0, 2, size=shape)
        fn = f"dist.Bernoulli(logits=2. * {safe})"
    elif kind == "Poisson":
        obs = numbers.integers(0, 4, size=shape)
        fn = f"dist.Poisson(jnp.exp({safe}))"
    elif kind == "sd":
        obs = numbers.normal(size=shape).round(2)
        fn = f"dist.Normal({w.pick(['a', '0.', 's'])}, jnp.exp({safe}))"
    else:
        wide = w.pick([(), (3,), (2,)]) if w.chance(15) else ()
        obs = numbers.normal(size=(*wide, *shape)).round(2)
        fn = f"dist.Normal({w.pick([safe, safe, x])}, {w.pick(['0.7', 's'])})"
        if wide:
            fn = f"{fn}.expand({[*wide, *shape]})"
        shape = (*wide, *shape)
    if shape and w.chance(15):
        fn = f"{fn}.to_event({w.random.randint(1, len(shape))})"
    elif shape and w.chance(10) and kind != "support":
        mask = np.arange(math.prod(shape)).reshape(shape) % 3 != 0
        fn = f"{fn}.mask(np.array({mask.tolist()}))"
    w.lines.append(f'numpyro.sample("{name}", {fn}, obs=np.array({np.asarray(obs).tolist()}))')
