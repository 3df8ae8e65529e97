"""The shell command: what it writes and says, and its exit status. Most tests use a stand-in for a fit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import marginalia
from marginalia.cli import main, outputs, say_unexpected
from marginalia.errors import Refusal

ROWS = "id,velocity,note\n7,1.50,a\n8,2.5,b\n9,9.0,\n"
FILES = ["fit.nc", "membership.csv", "report.html"]


class StandIn:
    """As much of a Fit as the command uses."""

    method = "nuts"
    notes = ("Labels switched and were put right.",)

    def __init__(self, status=(), interrupted=False, broken=()):
        self.status, self.broken = status, broken
        self.about = {"model_options": {"columns": ["velocity"]}}
        starts = SimpleNamespace(sentence="61 of 64 starts reach this mode.")
        self.result = SimpleNamespace(info={"interrupted": interrupted}, starts=starts)

    def summary(self):
        return pd.DataFrame({"mean": [1.23456], "ess_bulk": [812.3], "r_hat": [1.0009]}, index=["mu[0]"])

    def membership(self, y=(1.5, 2.5, 9.0)):
        p = np.array([[0.75, 0.25] if value < 5 else [0.0, 1.0] for value in y])
        return {"z": xr.DataArray(p, dims=("obs", "component"), coords={"component": [0, 1]})}

    def predict(self, *, random_seed=None):
        y = np.random.default_rng(random_seed).normal(5.0, 1.0, size=(2, 500, 3))
        return xr.Dataset({"y": (("chain", "draw", "obs"), y)})

    def save(self, path):
        Path(path).write_text("new fit")

    def report(self, path):
        Path(path).write_text("<html>half")
        if "report" in self.broken:
            raise OSError(28, "No space left on device", str(path))
        Path(path).write_text("<html>whole</html>")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture
def stand_in(monkeypatch):
    """Let the command get a given stand-in; returns what `marginalia.fit` was asked for."""

    def put(found):
        asked = {}

        def fit(marginal, **options):
            asked.update(options)
            return found

        plan = SimpleNamespace(explain=lambda: "z: 2 values, summed out [independently]")
        monkeypatch.setitem(vars(marginalia), "fit", fit)
        monkeypatch.setitem(vars(marginalia), "marginalize", lambda model, y: asked.update(model=model, y=y) or plan)
        monkeypatch.setitem(vars(marginalia), "load", lambda path: found)
        return asked

    return put


@pytest.fixture
def run(capsys):
    """Run the command: (exit status, what it said on stdout, on stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return leaving.value.code, said.out, said.err

    return run


def fit_words(data, out, *more):
    return ["fit", data, "--column", "velocity", "--out", out, "--seed", "4", "--no-cache", *more]


def test_a_fit_says_its_plan_table_and_verdict_and_writes_three_files(run, stand_in, data, tmp_path):
    asked = stand_in(StandIn())
    status, said, _ = run(*fit_words(data, tmp_path / "out"))
    assert status == 0
    for words in [
        "t.csv, column velocity.",
        "summed out [independently]",
        "mu[0]  1.235       812  1.001",
        "Converged: the chains agree",
        "61 of 64 starts reach this mode.",
        "Labels switched and were put right.",
        "The seed was 4.",
    ]:
        assert words in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert asked["random_seed"] == 4
    assert asked["method"] == "auto"
    np.testing.assert_array_equal(asked["y"], [1.5, 2.5, 9.0])
    assert asked["model"].model_options["columns"] == ["velocity"]


def test_membership_keeps_the_table_and_adds_probabilities_and_labels(run, stand_in, data, tmp_path):
    stand_in(StandIn())
    run(*fit_words(data, tmp_path / "out"))
    assert (tmp_path / "out" / "membership.csv").read_text() == (
        "row,id,velocity,note,z_0,z_1,z\n"
        "1,7,1.50,a,0.750000,0.250000,0\n"
        "2,8,2.5,b,0.750000,0.250000,0\n"
        "3,9,9.0,,0.000000,1.000000,1\n"
    )


def test_a_column_of_the_tables_own_is_never_hidden(run, stand_in, tmp_path):
    stand_in(StandIn())
    path = tmp_path / "t.csv"
    path.write_text("row,z,velocity\n5,p,1.5\n6,q,2.5\n7,r,9\n")
    run(*fit_words(path, tmp_path / "out"))
    with (tmp_path / "out" / "membership.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["row"] == "5"
    assert first["z"] == "p"
    assert (first["row_"], first["z_"], first["z_0"]) == ("1", "0", "0.750000")


def test_findings_are_said_and_give_status_3_with_the_results_written(run, stand_in, data, tmp_path):
    stand_in(StandIn(status=("R-hat of mu[0] is 1.83: run longer.",)))
    status, said, _ = run(*fit_words(data, tmp_path / "out"))
    assert status == 3
    assert "Not to be trusted yet:\n  - R-hat of mu[0] is 1.83: run longer." in said
    assert "Converged" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_an_interrupted_fit_is_kept_and_gives_status_130(run, stand_in, data, tmp_path):
    stand_in(StandIn(status=("Interrupted: 3 of 10 draws.",), interrupted=True))
    status, said, _ = run(*fit_words(data, tmp_path / "out"))
    assert status == 130
    assert "Interrupted: 3 of 10 draws." in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_ctrl_c_before_there_is_anything_gives_status_130_without_a_traceback(
    run, stand_in, data, tmp_path, monkeypatch
):
    stand_in(StandIn())

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(marginalia), "fit", stopped)
    status, _, complaint = run(*fit_words(data, tmp_path / "out"))
    assert status == 130
    assert complaint == "Error: stopped before there was anything to keep; nothing was written.\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_never_holds_the_results_of_two_runs(run, stand_in, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in [*FILES, "mine.txt"]:
        (out / name).write_text("old")
    stand_in(StandIn(broken=["report"]))
    status, _, complaint = run(*fit_words(data, out))
    assert status == 1
    assert "No space left on device. Remedy:" in complaint
    assert sorted(path.name for path in out.iterdir()) == ["fit.nc", "membership.csv", "mine.txt"]
    assert (out / "fit.nc").read_text() == "new fit"
    assert (out / "mine.txt").read_text() == "old"


def test_sampler_options_are_passed_on(run, stand_in, data, tmp_path):
    asked = stand_in(StandIn())
    run(*fit_words(data, tmp_path / "out", "--draws", 7, "--chains", 3))
    assert asked["method"] == marginalia.Auto(draws=7, chains=3, max_draws=7)  # so many, and no more
    run(*fit_words(data, tmp_path / "out", "--draws", 7, "--method", "laplace"))
    assert asked["method"] == marginalia.Laplace(draws=7)


def test_a_checkpoint_is_passed_on_and_keeps_the_seed_that_is_drawn(run, stand_in, data, tmp_path):
    found = StandIn()
    found.about["random_seed"] = 77
    asked = stand_in(found)
    words = [word for word in fit_words(data, tmp_path / "out") if word not in ("--seed", "4")]
    status, said, _ = run(*words, "--checkpoint", tmp_path / "run")
    assert status == 0
    assert asked["checkpoint"] == tmp_path / "run"
    assert asked["random_seed"] is None
    assert "The seed was 77." in said


def test_the_command_knows_every_method():
    from marginalia.cli.app import Method
    from marginalia.infer.driver import METHODS

    assert set(get_args(Method)) == set(METHODS)


BAD_WORDS = {
    "checkpoint_in_no_folder": (["fit", "{data}", "--checkpoint", "{dir}/no/run"], "--checkpoint"),
    "no_file": (["fit", "{dir}/none.csv"], "none.csv: there is no such file"),
    "no_column": (["fit", "{data}", "-c", "velo"], "Remedy: did you mean 'velocity'?"),
    "text_column": (
        ["fit", "{data}", "-c", "note"],
        "column 'note', row 1 (line 2 of t.csv): this cell is not",
    ),
    "constant": (["fit", "{dir}/same.csv"], "column 'x': all values are the same"),
    "few_rows": (
        ["fit", "{data}", "-c", "velocity", "-k", "4"],
        "Expected at least 4 rows for 4 components. Got 3.",
    ),
    "no_numbers": (["fit", "{dir}/words.csv"], "no column of this table looks like numbers"),
    "out_is_a_file": (["fit", "{data}", "-c", "velocity", "--out", "{data}"], "there is a file of that name"),
    "map_draws": (["fit", "{data}", "-c", "velocity", "--method", "map", "--draws", "5"], "draws nothing"),
    "laplace_tune": (
        ["fit", "{data}", "-c", "velocity", "--method", "laplace", "--tune", "5"],
        "--tune cannot be used with --method laplace, which has no such option",
    ),
    "zero_components": (["fit", "{data}", "-k", "0"], "greater than or equal to 1"),
    "unknown_method": (["fit", "{data}", "--method", "magic"], "'--method'"),
    "unknown_option": (["fit", "{data}", "--colum", "velocity"], "--colum"),
    "classify_out_is_a_folder": (["classify", "{data}", "{data}", "--out", "{dir}"], "this is a folder"),
    "report_nowhere": (["report", "{data}", "--out", "{dir}/no/r.html"], "there is no such folder"),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_input_is_one_sentence_and_status_2(case, run, data, tmp_path):
    (tmp_path / "same.csv").write_text("x\n1\n1\n1\n")
    (tmp_path / "words.csv").write_text("x\na\nb\n")
    words, complaint = BAD_WORDS[case]
    status, said, err = run(*(word.format(dir=tmp_path, data=data) for word in words))
    assert status == 2
    assert complaint in err
    assert said == ""
    assert "Traceback" not in err


def test_a_refusal_is_status_2(run, stand_in, data, tmp_path, monkeypatch):
    stand_in(StandIn())

    def refuse(model, y):
        raise Refusal("z has 2^82 states")

    monkeypatch.setitem(vars(marginalia), "marginalize", refuse)
    status, _, complaint = run(*fit_words(data, tmp_path / "out"))
    assert (status, complaint) == (2, "Error: z has 2^82 states\n")


def test_an_unexpected_error_is_one_sentence_unless_debug_is_asked(run, stand_in, data, tmp_path, monkeypatch, capsys):
    say_unexpected(ZeroDivisionError, ZeroDivisionError("division by zero\nand more"), None)
    assert capsys.readouterr().err == (
        "Error: an unexpected error, ZeroDivisionError: division by zero. Run with --debug for the traceback.\n"
    )
    with pytest.raises(marginalia.DataError):
        main(["fit", str(tmp_path / "none.csv"), "--debug"])


def test_classify_prints_or_writes_the_labels_of_new_rows(run, stand_in, data, tmp_path):
    stand_in(StandIn())
    new = tmp_path / "new.csv"
    new.write_text("velocity\n100\n0\n")
    expected = "row,velocity,z_0,z_1,z\n1,100,0.000000,1.000000,1\n2,0,0.750000,0.250000,0\n"
    status, said, _ = run("classify", "fit.nc", new, "--no-cache")
    assert (status, said) == (0, expected)
    status, said, _ = run("classify", "fit.nc", new, "--out", tmp_path / "labels.csv", "--no-cache")
    assert status == 0
    assert (tmp_path / "labels.csv").read_text() == expected


def test_predict_summarises_each_row_or_writes_all_draws(run, stand_in, tmp_path):
    stand_in(StandIn())
    status, said, _ = run("predict", "fit.nc", "--seed", 1, "--no-cache")
    rows = list(csv.DictReader(said.splitlines()))
    y = StandIn().predict(random_seed=1)["y"].values.reshape(1000, 3)
    assert status == 0
    assert [row["row"] for row in rows] == ["1", "2", "3"]
    np.testing.assert_allclose([float(row["velocity_mean"]) for row in rows], y.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose([float(row["velocity_high"]) for row in rows], np.quantile(y, 0.945, axis=0), rtol=1e-5)
    status, _, _ = run("predict", "fit.nc", "--seed", 1, "--out", tmp_path / "draws.nc", "--no-cache")
    assert status == 0
    with xr.open_dataset(tmp_path / "draws.nc", engine="h5netcdf") as written:
        np.testing.assert_array_equal(written["y"].values, y.reshape(2, 500, 3))


def test_help_and_version_load_no_jax():
    code = (
        "import sys\nfrom marginalia.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as leaving: status = leaving.code\n"
        "assert 'jax' not in sys.modules and 'matplotlib' not in sys.modules, 'slow'\nsys.exit(status)"
    )
    for words, expected, status in [
        (["--version"], f"marginalia {marginalia.__version__}", 0),
        (["fit", "--help"], "--components", 0),
        (["fit", "none.csv"], "", 2),
    ]:
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert expected in done.stdout


def test_no_module_hides_a_public_name():
    import marginalia

    modules = {path.stem for path in Path(marginalia.__file__).parent.iterdir()}
    assert not modules & set(marginalia.__all__)
    assert all(getattr(marginalia, name) is not None for name in marginalia.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        marginalia.fitt  # noqa: B018


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real, short fit of two far groups: the folder of its results, its data, its status and its words."""
    folder = tmp_path_factory.mktemp("real")
    y = np.concatenate([np.linspace(-1, 1, 12), np.linspace(9, 11, 6)])
    (folder / "t.csv").write_text("name,x\n" + "".join(f"r{i},{v:.4f}\n" for i, v in enumerate(y)))
    words = [*fit_words(folder / "t.csv", folder / "out"), "--chains", "2", "--draws", "100", "--tune", "200"]
    words[words.index("velocity")] = "x"
    command = [sys.executable, "-m", "marginalia", *map(str, words), "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return SimpleNamespace(folder=folder, status=done.returncode, said=done.stdout, complaint=done.stderr, y=y)


def test_a_real_fit_labels_two_far_groups(real):
    assert real.status in (0, 3), real.complaint
    assert real.complaint == ""
    assert (real.status == 3) == ("Not to be trusted yet" in real.said)
    with (real.folder / "out" / "membership.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"r{i}" for i in range(18)]
    assert [row["z"] for row in rows] == ["0"] * 12 + ["1"] * 6
    for row in rows:
        assert float(row["z_0"]) + float(row["z_1"]) == pytest.approx(1.0, abs=2e-6)
        assert float(row["z_" + row["z"]]) > 0.9
    page = (real.folder / "out" / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert 'src="http' not in page


def test_a_saved_fit_classifies_predicts_and_reports_again(real, run, tmp_path):
    saved = real.folder / "out" / "fit.nc"
    status, again, _ = run("classify", saved, real.folder / "t.csv", "--no-cache")
    assert status == 0
    assert again == (real.folder / "out" / "membership.csv").read_text()
    new = tmp_path / "new.csv"
    new.write_text("x\n10.5\n")
    status, said, _ = run("classify", saved, new, "--no-cache")
    assert next(csv.DictReader(said.splitlines()))["z"] == "1"
    status, said, _ = run("predict", saved, "--seed", 3, "--no-cache")
    rows = list(csv.DictReader(said.splitlines()))
    assert status == 0
    assert len(rows) == 18
    # Every row is predicted as a new one: the mixture's mean, about that of the data (sd 4.7, 200 draws).
    assert abs(np.mean([float(row["x_mean"]) for row in rows]) - real.y.mean()) < 1.5
    status, _, _ = run("report", saved, "--out", tmp_path / "again.html", "--no-cache")
    assert status == 0
    assert (tmp_path / "again.html").stat().st_size > 10_000


def test_sigterm_is_as_ctrl_c_and_gives_status_143(run, stand_in, data, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def terminated(marginal, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with monkeypatch.context() as patch:
        stand_in(StandIn())
        patch.setitem(vars(marginalia), "fit", terminated)
        status, _, complaint = run(*fit_words(data, tmp_path / "out"))
        assert (status, complaint) == (
            143,
            "Error: stopped before there was anything to keep; nothing was written.\n",
        )
    stand_in(StandIn(status=("Interrupted: 3 of 10 draws.",), interrupted=True))
    assert run(*fit_words(data, tmp_path / "out"))[0] == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_stopped_before_the_results_are_shown_they_are_written_and_while_they_are_written_it_says_which(
    run, stand_in, data, tmp_path, monkeypatch
):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    class Shown(StandIn):
        summary = stop

    stand_in(Shown())
    assert run(*fit_words(data, tmp_path / "out"))[0] == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES

    class Reported(StandIn):
        report = stop

    stand_in(Reported())
    status, _, complaint = run(*fit_words(data, tmp_path / "out"))
    assert status == 130
    assert "stopped while the results were written; complete in" in complaint
    assert complaint.endswith(": fit.nc, membership.csv.\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES[:2]


def test_a_command_that_only_reads_is_stopped_without_a_traceback(run, stand_in, data, tmp_path, monkeypatch):
    stand_in(StandIn())

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(marginalia), "marginalize", stop)
    assert run("explain", data, "--column", "velocity") == (130, "", "Error: stopped.\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("method", "stage", "kept"),
    [
        (["--method", "smc", "--draws", "3000"], "from prior to posterior", "no posterior"),
        (["--method", "nuts", "--tune", "200000"], "sampling", "before there was a draw from the posterior"),
    ],
)
def test_a_real_signal_to_a_real_run(method, stage, kept, number, tmp_path):
    """The run is stopped where it says on standard error that it is in the stage."""
    rows = np.concatenate([np.random.default_rng(0).normal(m, 1, 150) for m in (0, 5, 11)])
    (tmp_path / "t.csv").write_text("\n".join(["y", *map(str, rows)]) + "\n")
    words = [sys.executable, "-m", "marginalia", "fit", "t.csv", "-k", "3", "--seed", "1", "--out", "out", *method]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith(stage):
            process.send_signal(number)
            break
    said, complaint = process.communicate(timeout=240)
    assert process.returncode == 128 + number, complaint
    assert "Not to be trusted yet:" in said
    assert "Interrupted" in said
    assert kept in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    fit = marginalia.load(tmp_path / "out" / "fit.nc")
    assert any(kept in words for words in fit.status)
    np.testing.assert_allclose(fit.membership()["z"].sum("component"), 1.0)


def test_a_prediction_by_one_draw_has_no_spread():
    header, rows = outputs.prediction_rows(["y"], np.full((1, 2, 1), 3.0), 0.89)
    assert header == ["row", "y_mean", "y_sd", "y_low", "y_high"]
    assert list(rows) == [[1, "3", "nan", "3", "3"], [2, "3", "nan", "3", "3"]]
