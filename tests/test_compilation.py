"""Compiled programs: kept on disk when asked, and few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import marginalia as mg

FIT = """
import sys, collections
import jax
from jax import monitoring
import marginalia as mg

times = collections.Counter()
def count(event, duration, **_):
    times[event.rsplit("/", 1)[-1]] += 1
monitoring.register_event_duration_secs_listener(count)
hits = collections.Counter()
monitoring.register_event_listener(lambda event, **_: hits.update([event.rsplit("/", 1)[-1]]))
if len(sys.argv) > 1:
    mg.keep_compiled(sys.argv[1])
import numpy as np
import numpyro
import numpyro.distributions as dist
import jax.numpy as jnp

def model(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

y = np.concatenate([np.linspace(-4, -2, 20), np.linspace(2, 4, 20)])
mg.fit(model, y, method=mg.NUTS(draws=300, tune=300, chains=2), random_seed=1, progressbar=False)
print(times["backend_compile_duration"], hits["cache_hits"])
"""


def compiled(*arguments: str) -> tuple[int, int]:
    """How many programs one fit compiles in a new process, and how many of these it finds on disk."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    programs, found = done.stdout.split()[-2:]
    return int(programs), int(found)


def test_a_fit_compiles_few_programs_and_finds_them_again(tmp_path: Path) -> None:
    """Starts, sampler, labels, memberships: at most 14 programs, the long ones read from disk by the next process."""
    first, found = compiled(str(tmp_path / "kept"))
    assert first <= 14
    assert found == 0
    assert any((tmp_path / "kept").iterdir())
    _, found = compiled(str(tmp_path / "kept"))
    assert found >= 2


def test_the_folder_may_be_named_and_a_wrong_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(mg.OptionError, match="cannot be kept"):
        mg.keep_compiled(tmp_path / "file" / "folder")
