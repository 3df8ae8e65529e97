"""The same seed gives the same method and the same bytes, however slow the machine is and whatever ran before."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import known
import numpy as np
import pytest
import resumed

import marginalia as mg
from marginalia.infer import chains, evaluator, problem, run, smc
from marginalia.infer.result import Result
from marginalia.marginal import recall

METHODS = {**resumed.METHODS, "map": mg.MAP(starts=4)}
FAST = ("laplace", "ensemble", "map")
SOURCE = Path(mg.__file__).parent
MAY_LOOK = {"infer/progress.py", "infer/checkpoint.py"}  # what is shown, and how often a state is written


def infer(method: str) -> Result:
    marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))
    return run(marginal, METHODS[method], random_seed=11, progressbar=False)


def assert_same(found: Result, truth: Result) -> None:
    assert (found.method, found.findings) == (truth.method, truth.findings)
    assert found.info.get("choice") == truth.info.get("choice")
    ours, theirs = resumed.numbers(found), resumed.numbers(truth)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].tobytes() == value.tobytes(), name


def with_a_mad_clock(patch: pytest.MonkeyPatch) -> None:
    """Each look at a clock gives another hour, also an earlier one."""
    rng = np.random.default_rng(5)
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        patch.setattr(time, name, lambda: float(rng.uniform(0, 1e6)))


def with_a_busy_machine(patch: pytest.MonkeyPatch, cores: int) -> None:
    """Work in threads begins late, in no order, on another number of cores."""
    rng, submit = np.random.default_rng(6), ThreadPoolExecutor.submit

    def late(self: Any, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        pause = float(rng.uniform(0, 0.004))

        def run_late() -> Any:
            time.sleep(pause)
            return work(*args, **kwargs)

        return submit(self, run_late)

    patch.setattr(ThreadPoolExecutor, "submit", late)
    for module in (problem, chains, smc):
        patch.setattr(module, "workers", lambda: cores)
    patch.setattr(evaluator, "WORTH_THREADS", 1)


@pytest.mark.parametrize("method", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_no_draw_and_no_choice_depends_on_the_clock_or_on_load(method, monkeypatch):
    truth = infer(method)
    with monkeypatch.context() as patch:
        with_a_mad_clock(patch)
        found = infer(method)
    assert_same(found, truth)
    for cores in (1, 5):
        with monkeypatch.context() as patch:
            with_a_busy_machine(patch, cores)
            found = infer(method)
        assert_same(found, truth)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_nothing_depends_on_what_was_fitted_before(method, monkeypatch):
    def forget() -> None:
        recall._latest.clear()
        recall._alive.clear()

    forget()
    truth = infer(method)
    for before in ("map", "nuts", "ensemble", "laplace", "advi"):
        forget()
        infer(before)
        assert_same(infer(method), truth)


CHILD = """
import hashlib, json, os, sys
os.sched_setaffinity(0, set(json.loads(sys.argv[3])))  # before JAX counts them
sys.path.insert(0, sys.argv[1])
import resumed
result = resumed.infer(sys.argv[2])
digests = {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in resumed.numbers(result).items()}
print(json.dumps([result.method, result.info.get("choice"), list(result.findings), digests]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "ensemble", "smc"])
def test_another_process_under_load_gives_the_same(method):
    """Under another order of hashes, on one core, and beside a process that takes all it can get."""
    words = [sys.executable, "-c", CHILD, str(Path(__file__).parent), method]
    said = []
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        every = sorted(os.sched_getaffinity(0))
        for hashes, cores in (("1", every), ("77", every[:1])):
            child = subprocess.run(
                [*words, json.dumps(cores)],
                env={**os.environ, "PYTHONHASHSEED": hashes},
                capture_output=True,
                text=True,
                check=True,
                timeout=600,
            )
            said.append(json.loads(child.stdout))
    finally:
        busy.kill()
        busy.wait()
    assert said[0] == said[1]


def _clock_in(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression looks at a clock, or at what one has said before."""
    return any(
        (isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "time")
        or (isinstance(part, ast.Name) and part.id in names)
        for part in ast.walk(node)
    )


def _is_number(value: ast.AST) -> bool:
    """Whether an expression may be a number made of numbers, and not a record that holds one among others."""
    if isinstance(value, ast.Call):
        called = value.func
        clock = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "time"
        return clock or (isinstance(called, ast.Name) and called.id in ("min", "max", "abs", "round", "float", "int"))
    return not isinstance(value, ast.Dict)


def _decisions(tree: ast.AST) -> list[ast.AST]:
    """What decides: conditions, comparisons, and the lengths of loops."""
    out: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            out.append(node.test)
        elif isinstance(node, ast.Compare | ast.BoolOp):
            out.append(node)
        elif isinstance(node, ast.For | ast.comprehension):
            out.append(node.iter)
    return out


def decided_by_clock(source: str) -> list[int]:
    """Lines of a module where something is decided by a clock, or by whether another thread is done."""
    tree = ast.parse(source)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_number(node.value) and _clock_in(node.value, names):
            names |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    lines = [test.lineno for test in _decisions(tree) if _clock_in(test, names)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    lines += [c.lineno for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr in ("done", "running")]
    lines += [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "as_completed"]
    return lines


def test_no_module_decides_by_a_clock():
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).as_posix() not in MAY_LOOK]
    sources = {path: path.read_text(encoding="utf-8") for path in paths}
    looked = {path: text for path, text in sources.items() if "import time" in text or "concurrent.futures" in text}
    assert len(looked) > 5
    for path, text in looked.items():
        assert not decided_by_clock(text), path
    planted = "clock = time.perf_counter()\nspent = time.perf_counter() - clock\nif spent > 3:\n    pass\n"
    assert decided_by_clock(planted) == [3, 3]
    assert decided_by_clock("while not job.done():\n    pass\n") == [1]
