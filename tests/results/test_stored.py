"""Saving and loading: the same fit comes back, and what is no fit is refused in words."""

from __future__ import annotations

import arviz
import numpy as np
import pytest
import xarray as xr

from marginalia import store
from marginalia.errors import DataError, FitError
from marginalia.fitting import load


@pytest.fixture(scope="module")
def saved(good, tmp_path_factory):
    return good.save(tmp_path_factory.mktemp("fits") / "fit.nc")


def test_everything_comes_back(good, saved):
    back = load(saved)
    for name in good.draws:
        np.testing.assert_array_equal(back.draws[name], good.draws[name])
        np.testing.assert_array_equal(back.raw[name], good.raw[name])
    assert (back.status, back.notes, back.method) == (good.status, good.notes, good.method)
    assert back.families == good.families
    assert back.result.starts.sentence == good.result.starts.sentence
    assert back.result.info == good.result.info
    assert back.about["versions"] == store.versions()
    assert repr(back) == repr(good)
    assert back.summary().equals(good.summary())


def test_verbs_that_need_no_model_work_without_it(good, saved):
    back = load(saved)
    assert back.marginal is None
    np.testing.assert_array_equal(back.membership()["z"], good.membership()["z"])
    np.testing.assert_allclose(back.loo().elpd, good.loo().elpd, rtol=1e-12)
    assert len(back.plot.trace().axes) == 14


@pytest.mark.parametrize("verb", ["predict", "density"])
def test_verbs_that_need_the_model_say_how(saved, verb):
    with pytest.raises(FitError, match=r"loaded without its model.*marginalia\.load\(path, model, \*args\)"):
        getattr(load(saved), verb)()


def test_new_rows_need_the_model(saved):
    with pytest.raises(FitError, match="loaded without its model"):
        load(saved).membership(np.zeros(2))


def test_arviz_reads_it_too(good, saved):
    theirs = arviz.from_netcdf(saved)
    np.testing.assert_array_equal(theirs["posterior"]["mu"].values, good.draws["mu"])


def test_saving_again_gives_the_same(good, saved, tmp_path):
    again = load(load(saved).save(tmp_path / "again.nc"))
    assert repr(again) == repr(good)
    np.testing.assert_array_equal(again.raw["mu"], good.raw["mu"])
    np.testing.assert_array_equal(again.membership()["z"], good.membership()["z"])


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.nc: there is no such file"):
        load(tmp_path / "nothing.nc")


@pytest.mark.parametrize("content", [b"", b"text, not netCDF\n", None])
def test_damaged_files(saved, tmp_path, content):
    path = tmp_path / "bad.nc"
    whole = saved.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match="not a netCDF file, or it is damaged"):
        load(path)


def test_a_netcdf_file_of_someone_else(tmp_path):
    path = tmp_path / "other.nc"
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(DataError, match="marginalia did not write this file"):
        load(path)


def test_a_file_of_a_later_format(good, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 99)
    path = good.save(tmp_path / "later.nc")
    monkeypatch.undo()
    with pytest.raises(DataError, match="format 99"):
        load(path)


def test_a_folder_that_is_not_there(good, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        good.save(tmp_path / "no" / "fit.nc")
    with pytest.raises(DataError, match="cannot be written"):
        good.report(tmp_path / "no" / "report.html")


def test_a_failed_save_leaves_the_old_file(good, tmp_path, monkeypatch):
    path = good.save(tmp_path / "fit.nc")
    before = path.read_bytes()

    def fails(self, target, **options):
        target = str(target)
        with open(target, "wb") as file:  # noqa: PTH123
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", fails)
    with pytest.raises(DataError, match="disk full"):
        good.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]
