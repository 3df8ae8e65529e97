"""Pictures of a fit. Each function takes computed values and returns a matplotlib Figure; no global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from marginalia.errors import FitError, OptionError, compose
from marginalia.summary import labels

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from marginalia.fitting import Fit

# Okabe and Ito's colours, told apart by colour-blind readers and in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5B5B5B")
INK, PALE, GRID = "#222222", "#C9CED6", "#E7E9ED"
MOST_ROWS_OF_TRACES = 24
TRACE_POINTS = 500  # a line: more cannot be seen
MOST_BARS = 2000
MOST_POINTS = 5000


class Plots:
    """The pictures of one fit: `trace()`, `membership()`, `density()`."""

    def __init__(self, fit: Fit):
        self._fit = fit

    def trace(self, names: list[str] | None = None) -> Figure:
        """Each parameter's draws by chain, and their density; 24 parameters unless `names` asks for sites."""
        return trace(_chosen(self._fit.draws, names), limit=None if names else MOST_ROWS_OF_TRACES)

    def membership(self, site: str | None = None) -> Figure:
        """P(z = k | data) of every row as a stacked bar, in the order of the data or of the shares."""
        found = self._fit.membership()
        name = next(iter(found)) if site is None else _known(site, found)
        observed = self._fit.data["observed_data"].data_vars if "observed_data" in self._fit.data.children else {}
        values = {_columns(self._fit, str(n), 1)[0]: v.values for n, v in observed.items()}
        return membership(found[name], values)

    def density(self) -> Figure:
        """The data with the density: a histogram and its band in 1-D, points and contours in 2-D."""
        table = self._fit.density()  # refuses what is not one site in one or two dimensions
        ((name, observed),) = self._fit.data["observed_data"].data_vars.items()
        value = observed.values.reshape(len(observed), -1)
        columns = _columns(self._fit, str(name), value.shape[1])
        if value.shape[1] == 1:
            return density_1d(table, value[:, 0], columns[0])
        shares = next(iter(self._fit.membership().values()), None)
        rows = None
        if shares is not None and shares.ndim == 2 and len(shares) == len(value):
            rows = shares.values
        return density_2d(table, value, columns, rows)


def trace(draws: dict[str, np.ndarray], *, limit: int | None = None) -> Figure:
    """Draws by chain on the left, their densities on the right. `draws`: (chain, draw, *shape)."""
    rows = []
    for name, value in draws.items():
        flat = np.asarray(value, float).reshape(*np.shape(value)[:2], -1)
        rows += [(label, flat[..., i]) for i, label in enumerate(labels(name, np.shape(value)[2:]))]
    hidden = 0 if limit is None else max(0, len(rows) - limit)
    rows = rows[:limit]
    if rows[0][1].size < 2:
        raise FitError(
            compose("a mode has no trace", where="plot.trace()", remedy='fit with method="nuts" to have draws.')
        )
    figure = Figure(figsize=(9.0, 1.25 * len(rows) + 0.7), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(3, 1.3))
    for (label, value), (left, right) in zip(rows, axes, strict=True):
        step = max(1, value.shape[1] // TRACE_POINTS)
        for c, chain in enumerate(value):
            colour = COLOURS[c % len(COLOURS)]
            left.plot(np.arange(len(chain))[::step], chain[::step], color=colour, lw=0.6, alpha=0.8)
            x, p = kde(chain, value.min(), value.max())
            right.plot(x, p, color=colour, lw=1.2)
        left.set_ylabel(label, rotation=0, ha="right", va="center")
        left.set_xlim(0, max(1, value.shape[1] - 1))
        right.set_yticks([])
        right.set_ylim(bottom=0)
        _clean(left)
        _clean(right)
        left.locator_params(axis="y", nbins=3)
        right.locator_params(axis="x", nbins=4)
    for left in axes[:-1, 0]:
        left.tick_params(labelbottom=False)
    axes[0, 0].set_title("draws, one colour a chain", loc="left", fontsize=10, color=INK)
    axes[0, 1].set_title("density", loc="left", fontsize=10, color=INK)
    axes[-1, 0].set_xlabel("draw" + (f"      ({hidden} more parameters are not shown)" if hidden else ""))
    figure.align_ylabels(axes[:, 0])
    return figure


def membership(shares: xr.DataArray, observed: dict[str, np.ndarray] | None = None) -> Figure:
    """One stacked bar an element, sorted by the data (one number an element) or by the shares."""
    states = [str(s) for s in shares[shares.dims[-1]].values]
    p = shares.values.reshape(-1, len(states))
    order, x, axis = _order(p, shares, observed or {})
    p = p[order]
    if len(p) > MOST_BARS:
        keep = np.linspace(0, len(p) - 1, MOST_BARS).round().astype(int)
        p, axis = p[keep], f"{axis}; {MOST_BARS} of {len(order)} shown"
        x = None if x is None else x[keep]
    figure = Figure(figsize=(9.0, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(p) + 1)
    below = np.zeros(len(p))
    for k, state in enumerate(states):
        top = below + p[:, k]
        axes.stairs(top, at, baseline=below, fill=True, color=COLOURS[k % len(COLOURS)], label=state, lw=0)
        below = top
    axes.set(xlim=(0, len(p)), ylim=(0, 1), ylabel=f"P({shares.name} = k | data)", xlabel=axis)
    if x is not None:
        ticks = np.unique(np.linspace(0, len(p) - 1, 7).round().astype(int))
        axes.set_xticks(ticks + 0.5, [f"{x[t]:.4g}" for t in ticks])
    elif len(p) <= 30:
        axes.set_xticks(np.arange(len(p)) + 0.5, [str(o) for o in order])
    _clean(axes)
    axes.grid(visible=False)
    title = str(shares.dims[-1]).replace("_", " ")
    figure.legend(title=title, loc="outside right upper", frameon=False, fontsize=9, title_fontsize=9)
    return figure


def density_1d(table: xr.Dataset, value: np.ndarray, name: str) -> Figure:
    """Histogram of the data, posterior mean density with its 89 % band, and each component's part."""
    figure = Figure(figsize=(9.0, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    grid = table["grid"].values
    whole = grid.dtype.kind in "iub"
    if whole:
        bins = np.arange(value.min(), value.max() + 2) - 0.5
        bins = bins[:: max(1, len(bins) // 200)]
    else:
        bins = np.histogram_bin_edges(value, bins=_bins(value))
    axes.hist(value, bins=list(bins), density=True, color=PALE, edgecolor="white", lw=0.5, label="data")
    for k, part in enumerate(table["part"].values if "part" in table else ()):
        state = str(table["component"].values[k])
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(grid, part, color=colour, alpha=0.22, lw=0)
        axes.plot(grid, part, color=colour, lw=1.5, ls=(0, (3, 2)), zorder=4, label=f"component {state}")
    if table.attrs["draws"] > 1:
        band = f"{100 * table.attrs['probability']:.0f} % band"
        axes.fill_between(grid, table["lower"], table["upper"], color=INK, alpha=0.18, lw=0, label=band)
    axes.plot(grid, table["mean"], color=INK, lw=2.2, marker="o" if whole else "", ms=3, label="mixture")
    if len(value) <= 500:
        line = axes.get_xaxis_transform()
        axes.plot(value, np.full(len(value), 0.018), "|", color=INK, ms=6, mew=0.7, alpha=0.6, transform=line)
    axes.set(xlabel=name, ylabel="probability" if whole else "density", xlim=(grid[0], grid[-1]))
    axes.set_ylim(-0.05 * axes.get_ylim()[1] if len(value) <= 500 else 0, None)
    _clean(axes)
    handles, names = axes.get_legend_handles_labels()
    first = [i for i, n in enumerate(names) if not n.startswith("component")]
    order = first + [i for i in range(len(names)) if i not in first]
    axes.legend([handles[i] for i in order], [names[i] for i in order], frameon=False, fontsize=9)
    return figure


def density_2d(table: xr.Dataset, value: np.ndarray, columns: list[str], shares: np.ndarray | None) -> Figure:
    """Points coloured by their most probable component under contours of the posterior mean density."""
    figure = Figure(figsize=(6.8, 5.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    if len(value) > MOST_POINTS:
        keep = np.linspace(0, len(value) - 1, MOST_POINTS).round().astype(int)
        value, shares = value[keep], None if shares is None else shares[keep]
    best = np.zeros(len(value), int) if shares is None else shares.argmax(axis=1)
    size = 22 if len(value) <= 500 else 6
    for k in np.unique(best):
        label = "data" if shares is None else f"component {k}"
        colour = COLOURS[k % len(COLOURS)]
        x, y = value[best == k].T
        axes.scatter(x, y, s=size, color=colour, alpha=0.65, lw=0, label=label)
    z = table["mean"].values.T
    # Levels that hold these shares of the probability.
    sorted_z = np.sort(z.ravel())[::-1]
    held = np.cumsum(sorted_z) / sorted_z.sum()
    levels = sorted({float(sorted_z[np.searchsorted(held, q)]) for q in (0.97, 0.89, 0.7, 0.5, 0.3, 0.1)})
    axes.contour(table["y0"], table["y1"], z, levels=levels, colors=INK, linewidths=0.9)
    axes.plot([], [], color=INK, lw=0.9, label="density, 10 to 97 % inside")
    axes.set(xlabel=columns[0], ylabel=columns[1])
    _clean(axes)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def kde(value: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian kernel density of one chain on a common grid (Silverman's rule; binned, so cheap)."""
    margin = 0.08 * (high - low) or 1e-9 + 0.01 * abs(high)
    edges = np.linspace(low - margin, high + margin, 257)
    width = edges[1] - edges[0]
    centres = (edges[:-1] + edges[1:]) / 2
    spread = min(value.std(), float(np.subtract(*np.percentile(value, [75, 25]))) / 1.34) or value.std()
    bandwidth = max(0.9 * spread * len(value) ** -0.2, width)
    count = np.histogram(value, edges)[0]
    reach = np.arange(-128, 129) * width
    kernel = np.exp(-0.5 * (reach / bandwidth) ** 2)
    smooth = np.convolve(count, kernel / kernel.sum(), mode="same")[: len(centres)]
    return centres, smooth / (smooth.sum() * width)


def _bins(value: np.ndarray) -> int:
    """Freedman and Diaconis' number of bins, kept between 10 and 60."""
    spread = float(np.subtract(*np.percentile(value, [75, 25])))
    extent = float(value.max() - value.min())
    if spread <= 0 or extent <= 0:
        return 10
    return int(np.clip(np.ceil(1.6 * extent / (2 * spread * len(value) ** (-1 / 3))), 10, 60))


def _order(p: np.ndarray, shares: xr.DataArray, observed: dict) -> tuple[np.ndarray, np.ndarray | None, str]:
    element = " x ".join(map(str, shares.dims[:-1])) or str(shares.name)
    for name, value in observed.items():
        if value.shape == shares.shape[:-1] and value.ndim == 1 and value.dtype.kind in "iuf":
            order = np.argsort(value, kind="stable")
            return order, value[order], f"{element}, in the order of {name}"
    expected = p @ np.arange(p.shape[1])
    return np.argsort(expected, kind="stable"), None, f"{element}, sorted by membership"


def _columns(fit: Fit, site: str, number: int) -> list[str]:
    """Names of the data's columns: those that a ready model kept, else the site's own."""
    kept = fit.about.get("model_options", {}).get("columns") or []
    if len(kept) == number:
        return [str(c) for c in kept]
    return [site] if number == 1 else [f"{site}[{i}]" for i in range(number)]


def _chosen(draws: dict[str, np.ndarray], names: list[str] | None) -> dict[str, np.ndarray]:
    if names is None:
        return draws
    return {n: draws[_known(n, draws)] for n in names}


def _known(name: str, found: dict[str, Any]) -> str:
    if name not in found:
        raise OptionError(compose(f"there is no site {name!r}", where="plot", expected=f"one of {list(found)}"))
    return name


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9AA0A8")
    axes.tick_params(colors=INK, labelsize=8.5, color="#9AA0A8")
    axes.grid(visible=True, color=GRID, lw=0.7)
    axes.set_axisbelow(True)
