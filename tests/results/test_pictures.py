"""Pictures and the page: complete, self-contained, and safe with any name."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from handwritten import MU3, data, fit_of, gaussian_draws, mixture
from matplotlib.figure import Figure

from marginalia import plots
from marginalia.errors import FitError, OptionError
from marginalia.report import render

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects text and attributes, and fails on tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def page(good):
    return Page(render(good))


def drawn(figure: Figure) -> Figure:
    figure.canvas.draw()  # layout warnings are errors here
    return figure


def test_trace_shows_every_parameter_by_chain(good):
    figure = drawn(good.plot.trace())
    left = figure.axes[::2]
    assert [a.get_ylabel() for a in left] == list(good.summary().index)
    assert all(len(a.lines) == 4 for a in figure.axes)
    mu0 = left[3].lines[1]
    np.testing.assert_array_equal(mu0.get_ydata(), good.draws["mu"][1, :, 0])


def test_trace_of_some_sites_and_of_an_unknown_one(good):
    assert len(good.plot.trace(["mu"]).axes) == 6
    with pytest.raises(OptionError, match=r"no site 'nu'"):
        good.plot.trace(["nu"])


def test_many_parameters_are_cut_and_counted():
    many = {"x": np.random.default_rng(0).standard_normal((2, 30, 40))}
    figure = plots.trace(many, limit=24)
    assert len(figure.axes) == 48
    assert "16 more parameters" in figure.axes[-2].get_xlabel()


def test_kernel_density_is_a_density():
    value = np.random.default_rng(0).standard_normal(4000)
    x, p = plots.kde(value, value.min(), value.max())
    np.testing.assert_allclose(np.trapezoid(p, x), 1.0, atol=1e-3)
    np.testing.assert_allclose(p, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), atol=0.03)


def test_constant_draws_can_be_drawn():
    drawn(plots.trace({"x": np.ones((2, 10))}))


def test_membership_bars_are_sorted_by_the_data_and_sum_to_one(good):
    figure = drawn(good.plot.membership())
    (axes,) = figure.axes
    tops = [patch.get_data().values for patch in axes.patches]
    np.testing.assert_allclose(tops[-1], 1.0, rtol=1e-9)
    order = np.argsort(good.data["observed_data"]["y"].values, kind="stable")
    np.testing.assert_allclose(tops[0], good.membership()["z"].values[order, 0])
    assert "order of y" in axes.get_xlabel()


def test_density_draws_mixture_band_and_components(good):
    (axes,) = drawn(good.plot.density()).axes
    names = axes.get_legend_handles_labels()[1]
    assert set(names) == {"data", "89 % band", "mixture", "component 0", "component 1", "component 2"}


def test_density_of_a_mode_has_no_band(mode):
    (axes,) = drawn(mode.plot.density()).axes
    assert "89 % band" not in axes.get_legend_handles_labels()[1]


def test_density_in_the_plane():
    mu = [[-0.8, -1.5], [0.8, 1.0]]
    fit = fit_of(mixture(data(mu, [0.3, 0.7], 1.0), 2), gaussian_draws(mu, [0.3, 0.7], 1.0))
    (axes,) = drawn(fit.plot.density()).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("y[0]", "y[1]")


def test_columns_keep_their_names(good):
    named = dataclasses.replace(good, about={**good.about, "model_options": {"columns": ["velocity"]}})
    assert named.plot.density().axes[0].get_xlabel() == "velocity"
    assert "order of velocity" in named.plot.membership().axes[0].get_xlabel()


def test_a_mode_has_no_trace(mode):
    with pytest.raises(FitError, match="a mode has no trace"):
        mode.plot.trace()


def test_the_page_is_whole_and_loads_nothing(good, page):
    sources = [
        attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if tag in ("img", "link", "script", "a")
    ]
    assert len(sources) == 3
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert not re.search(r"https?://|url\(|@import", render(good))
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_the_page_says_what_matters(good, page):
    for words in (
        "Converged: the chains agree",
        "61 of 64 starts reach this mode",
        "150 of 600 draws were relabelled",
        "y: 60 values",
        "summed element by element <as a table>",
        "R-hat raw",
        f"{good.loo().elpd:.1f}",
        "Seed7",
        "numpyro",
    ):
        assert words in page.text, words
    assert page.text.index("Converged") < page.text.index("Parameters") < page.text.index("Traces")


def test_the_page_warns_first():
    draws = gaussian_draws(MU3, [0.2, 0.5, 0.3], 0.8, length=100)
    draws["mu"][2] += [0.0, 0.0, 3.0]
    page = Page(render(fit_of(mixture(data(MU3, [0.2, 0.5, 0.3], 0.8), 3), draws)))
    assert "Not to be trusted yet" in page.text
    assert "Converged" not in page.text
    assert page.text.index("not label switching") < page.text.index("What was fitted")


def test_the_page_of_a_mode(mode):
    page = Page(render(mode))
    assert "A mode has no uncertainty" in page.text
    assert "leave-one-out needs draws" in page.text
    assert "Traces" not in page.text


def test_names_of_the_user_are_text(good):
    evil = '<script>alert("x")</script>'
    draws = {evil if n == "mu" else n: v for n, v in good.draws.items()}
    about = {**good.about, "model_name": evil, "model_options": {"columns": [evil]}}
    fit = dataclasses.replace(good, status=(evil,), notes=(evil,), about=about, draws=draws, raw=draws)
    text = render(dataclasses.replace(fit, marginal=None))
    assert "<script" not in text
    assert evil in Page(text).text


def test_one_draw_a_chain_is_drawn_too():
    assert plots.trace({"mu": np.arange(4.0).reshape(4, 1)}).axes
