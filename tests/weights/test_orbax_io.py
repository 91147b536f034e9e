"""Orbax folders: exact round trip, and every damage noticed."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.weights import orbax_io
from sinkjax.weights.validate import WeightsError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  cfg = sinkjax.TINY
  params = sinkjax.init_params(cfg, jax.random.key(3))
  path = tmp_path_factory.mktemp("orbax") / "model"
  orbax_io.save(path, params, cfg)
  return path, params, cfg


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / "model")
  return tmp_path / "model"


def test_round_trip_is_exact(saved):
  path, params, cfg = saved
  model = sinkjax.load(path)
  assert model.cfg == cfg
  assert model.tokenizer is None
  jax.tree.map(np.testing.assert_array_equal, model.params, params)


def data_files(path):
  files = [f for f in (path / "params").rglob("*") if f.is_file()]
  return sorted(files, key=lambda f: -f.stat().st_size)


def test_flipped_bits_are_noticed(copy):
  target = data_files(copy)[0]
  raw = bytearray(target.read_bytes())
  for at in range(len(raw) // 4, len(raw), max(1, len(raw) // 20)):
    raw[at] ^= 0x10
  target.write_bytes(raw)
  with pytest.raises(WeightsError) as error:
    sinkjax.load(copy)
  assert "\n" not in str(error.value)


def test_truncated_file_is_noticed(copy):
  target = data_files(copy)[0]
  target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
  with pytest.raises(WeightsError):
    sinkjax.load(copy)


def pipe(path, outside):
  path.unlink()
  os.mkfifo(path)


def link(path, outside):
  """What it was lies outside the folder then."""
  outside.mkdir()
  shutil.move(path, outside / "moved")
  path.symlink_to(outside / "moved")


def test_what_orbax_must_not_open(saved, tmp_path):
  """In a dry run as well: a pipe would be waited for."""
  names = [p.relative_to(saved[0]) for p in saved[0].rglob("params/**/*")]
  cases = [(pipe, n, "a pipe") for n in names if (saved[0] / n).is_file()]
  cases += [(link, name, "is a link to") for name in (*names, "params")]
  for i, (spoil, name, word) in enumerate(cases):
    folder = shutil.copytree(saved[0], tmp_path / f"{i}")
    spoil(folder / name, tmp_path / f"outside-{i}")
    for read in (sinkjax.load, orbax_io.check):
      with pytest.raises(WeightsError, match=word) as error:
        read(folder)
      assert str(folder) in str(error.value)


def test_missing_params_folder(copy):
  shutil.rmtree(copy / "params")
  with pytest.raises(WeightsError, match="folder params, of the arrays, is"):
    sinkjax.load(copy)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: m.update(schema=2), "schema 2, expected 1"),
    (lambda m: m["config"].update(n_layers=4), "the config asks for"),
    (lambda m: m["config"].update(height=4), "unknown config field"),
    (lambda m: m["config"].update(n_layers=-1), "n_layers must be"),
    (lambda m: m["arrays"].pop("embed"), "'embed' is missing or unknown"),
    (lambda m: m["arrays"]["embed"].update(dtype="bfloat16"), "is bfloat16"),
    (lambda m: m["arrays"]["embed"].update(sha256="0"), "not what was written"),
    (lambda m: m.pop("arrays"), "no valid manifest"),
  ],
)
def test_manifest_is_checked(copy, change, message):
  manifest = json.loads((copy / orbax_io.MANIFEST).read_text())
  change(manifest)
  (copy / orbax_io.MANIFEST).write_text(json.dumps(manifest))
  with pytest.raises(WeightsError, match=message):
    sinkjax.load(copy)


def test_refuses_a_full_folder_and_foreign_params(saved, tmp_path):
  path, params, cfg = saved
  with pytest.raises(ValueError, match="not an empty folder"):
    orbax_io.save(path, params, cfg)
  with pytest.raises(WeightsError, match="the config asks for"):
    orbax_io.save(tmp_path / "x", params, cfg.replace(d_ff=49))
  assert not (tmp_path / "x").exists()
