"""Checkpoints: a run that was killed ends in the draws of one that was not; another run's file is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import known
import numpy as np
import optax
import pytest
import resumed

import marginalia as mg
from marginalia.errors import DataError, OptionError
from marginalia.infer import checkpoint, driver, lock, run
from marginalia.infer.progress import Silent

HERE = Path(__file__).parent


class Stop(BaseException):
    """The process ends here, as far as the run can see."""


def child(method: str, path: Path, write: int, where: str, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, resumed.__file__, method, path, str(write), where, out], env=dict(os.environ)
    )


def assert_same(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> None:
    assert found.keys() == truth.keys()
    for name in truth:
        assert found[name].dtype == truth[name].dtype
        assert found[name].tobytes() == truth[name].tobytes(), name


@pytest.mark.slow
def test_killed_in_warm_up_and_while_it_writes_nuts_ends_in_the_same_draws(tmp_path):
    path, out = tmp_path / "run", tmp_path / "draws.npz"
    for write, where in ((4, "after"), (3, "inside")):
        assert child("nuts", path, write, where, out).wait(timeout=120) == -9
        assert not out.exists()
    assert child("nuts", path, 0, "", out).wait(timeout=120) == 0
    with np.load(out) as file:
        assert_same(dict(file), resumed.numbers(resumed.infer("nuts")))


@pytest.mark.slow
@pytest.mark.parametrize("method", resumed.METHODS)
def test_killed_twenty_times_at_any_moment_it_ends_in_the_same_draws(method, tmp_path):
    path, out = tmp_path / "run", tmp_path / "draws.npz"
    rng = np.random.default_rng(sum(map(ord, method)))
    begun = time.monotonic()
    assert child(method, tmp_path / "other", 0, "", tmp_path / "other.npz").wait(timeout=300) == 0
    usual = time.monotonic() - begun
    for _ in range(20):
        process = child(method, path, 0, "", out)
        # Time enough to load and compile, then any moment; a run that is complete by then is begun anew.
        time.sleep(usual * rng.uniform(0.3, 1.0))
        process.kill()
        process.wait()
        if out.exists():
            out.unlink()
            path.unlink()
    assert child(method, path, 0, "", out).wait(timeout=300) == 0
    with np.load(out) as file, np.load(tmp_path / "other.npz") as other:
        assert_same(dict(file), dict(other))


@pytest.mark.parametrize(
    "method",
    [
        "advi",
        "smc",
        "laplace",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("ensemble", "metropolis", "slice", "auto", "low-rank")),
    ],
)
def test_stopped_and_resumed_it_ends_in_the_same_draws(method, tmp_path, monkeypatch):
    truth = resumed.numbers(resumed.infer(method))
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "WRITING_SHARE", 1e9)
    write, count = checkpoint.OnDisk.write, 0

    def stopping(self):
        nonlocal count
        write(self)
        count += 1
        if count == 4:
            raise Stop

    monkeypatch.setattr(checkpoint.OnDisk, "write", stopping)
    with pytest.raises(Stop):
        resumed.infer(method, tmp_path / "run")
    assert_same(resumed.numbers(resumed.infer(method, tmp_path / "run")), truth)
    assert count > 5


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    class Interrupting(Silent):
        def __init__(self):
            self.sampling = False

        def stage(self, name, total):
            self.sampling = name == "sampling"

        def update(self, done, note=""):
            # Of 2 x 500 steps so many that the slower chain, too, is past its tuning.
            if self.sampling and done >= 650:
                raise KeyboardInterrupt

    truth = resumed.infer("slice")
    monkeypatch.setattr(driver, "make_progress", lambda show: Interrupting())
    part = resumed.infer("slice", tmp_path / "run")
    assert part.info["interrupted"]
    assert 0 < part.draws["theta"].shape[1] < 400
    monkeypatch.setattr(driver, "make_progress", lambda show: Silent())
    assert_same(resumed.numbers(resumed.infer("slice", tmp_path / "run")), resumed.numbers(truth))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A complete run by MAP, begun without a seed."""
    path = tmp_path_factory.mktemp("checkpoint") / "run"
    return path, fit(path)


def fit(path, y=known.Y, model=known.two_parameters, method=None, random_seed=None):
    return run(
        mg.marginalize(model, y),
        mg.MAP(starts=2) if method is None else method,
        random_seed=random_seed,
        progressbar=False,
        checkpoint=path,
    )


def test_a_complete_run_gives_its_result_at_once_and_keeps_its_seed(complete, monkeypatch):
    path, first = complete
    monkeypatch.setattr(driver, "Problem", None)  # nothing is computed
    for seed in (None, first.info["random_seed"]):
        again = fit(path, random_seed=seed)
        assert_same(resumed.numbers(again), resumed.numbers(first))
        assert again.info == first.info
        assert again.starts.sentence == first.starts.sentence


def other_model(y):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0, 5.5))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]), obs=y)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"y": known.Y + 1}, DataError, "the data of 'y' are others"),
        ({"model": other_model}, DataError, "the model is another one"),
        ({"method": mg.MAP(starts=3)}, OptionError, "the option 'starts' was 2 and is 3"),
        ({"method": mg.NUTS()}, OptionError, "the method was 'MAP' and is 'NUTS'"),
        ({"random_seed": 5}, OptionError, r"random_seed was \d+ and is 5"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(complete, change, error, words):
    with pytest.raises(error, match=f"this checkpoint is of another run.*{words}.*Remedy: make the same call"):
        fit(complete[0], **change)


def test_two_runs_never_write_one_checkpoint(tmp_path, complete):
    path = tmp_path / "run"
    path.write_bytes(complete[0].read_bytes())
    held = lock.take(path)
    assert held is not None
    words = (
        f"checkpoint .*run: another run is writing this .* Got process {os.getpid()}. Remedy: wait until it has ended"
    )
    with pytest.raises(DataError, match=words):
        fit(path)
    held.release()
    assert fit(path).info == complete[1].info
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]  # nothing is left, not by a refusal either
    with pytest.raises(DataError, match="the data of 'y' are others"):
        fit(path, y=known.Y + 1)
    assert fit(path).info == complete[1].info


def test_the_lock_of_a_killed_process_keeps_nobody_out(tmp_path):
    path = tmp_path / "run"
    code = "import os, sys, pathlib\nfrom marginalia.infer.lock import take\nheld = take(pathlib.Path(sys.argv[1]))\n"
    code += "print('held', flush=True)\nsys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(DataError, match=f"Got process {other.pid}\\."):
        lock.take(path)
    other.kill()
    other.communicate()
    assert (tmp_path / ".run.lock").exists()
    held = lock.take(path)
    assert held is not None
    held.release()


def test_optimisers_are_told_apart_by_their_step_size():
    marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))

    def options(rate):
        return checkpoint.identify(marginal, mg.ADVI(optimizer=optax.adagrad(rate)), None).options

    assert options(0.1) == options(0.1)
    assert options(0.1) != options(0.2)


def test_the_checkpoint_of_another_version_is_refused(complete, monkeypatch):
    monkeypatch.setattr(checkpoint, "version", lambda name: "0.0")
    with pytest.raises(DataError, match=r"jax was \S+ and is 0\.0"):
        fit(complete[0])


def test_a_file_that_is_no_checkpoint_is_refused(complete, tmp_path):
    path = tmp_path / "run"
    whole = complete[0].read_bytes()
    for damaged in (b"", b"words", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="no checkpoint of marginalia, or it is damaged"):
            fit(path)
    with pytest.raises(DataError, match=r"cannot be written.*choose another folder"):
        fit(tmp_path / "nowhere" / "run")


def test_states_come_back_as_they_were():
    state = {
        "a": [1, 2.5, None, "x", True],
        "b": (np.arange(3.0), np.float32(2)),
        "c": {"inf": float("-inf"), "big": 2**100},
    }
    arrays: list[np.ndarray] = []
    words = checkpoint.encode(state, arrays)
    back = checkpoint.decode(words, {f"arr_{i}": array for i, array in enumerate(arrays)})
    assert back["a"] == state["a"]
    assert back["c"] == state["c"]
    assert isinstance(back["b"], tuple)
    np.testing.assert_array_equal(back["b"][0], state["b"][0])
    assert back["b"][1].dtype == np.float32
    with pytest.raises(TypeError, match="cannot hold a set"):
        checkpoint.encode({1}, [])
    with pytest.raises(ValueError, match=r"does not hold a os\.system"):
        checkpoint.decode({"class": ["os", "system"], "fields": {}}, {})
