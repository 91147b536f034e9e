"""Converts any model that sinkjax loads to a Hugging Face or Orbax folder.

  python -m launch.convert --model=smollm2-135m --to=hf --out=out/smollm2-hf
  python -m launch.convert --model=model.gguf --to=orbax --out=out/orbax

The result is float32, bit for bit what was loaded, with the tokenizer beside
it; --dtype=bfloat16 rounds the weights and halves a Hugging Face folder.
Transformers reads such a folder and gives the same logits; an Orbax folder has
a SHA-256 of every array, which is verified when it is read.
"""

import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import app

if TYPE_CHECKING:
  from sinkjax.weights.registry import Model

MODEL = flags.DEFINE_string("model", None, "A model's name or path.")
TO = flags.DEFINE_enum("to", "hf", ["hf", "orbax"], "The format to write.")
OUT = flags.DEFINE_string("out", None, "The folder to write: new, or empty.")
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Of the weights as they are written; bfloat16 goes with --to=hf.",
)


def main() -> None:
  """Loads, writes, and reads back what was written."""
  for flag in (MODEL, OUT):
    if not flag.value:
      raise ValueError(f"--{flag.name} is missing; see --help")
  out = pathlib.Path(OUT.value).expanduser()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"--out={out} exists and is not an empty folder")
  if DTYPE.value != "float32" and TO.value != "hf":
    raise ValueError(f"--dtype={DTYPE.value} goes with --to=hf")
  from sinkjax.weights import registry
  from sinkjax.weights.hf_config import config_to_hf

  found = registry.peek(MODEL.value)
  if found is not None and TO.value == "hf":
    # It raises for a model that transformers cannot describe, and does so here
    # before any weights are read.
    config_to_hf(found[0])
  if DRY_RUN.value:
    _plan(found, out)
    return
  from tqdm import tqdm

  with tqdm(total=3, desc="loading", unit="step", leave=False) as bar:
    model = registry.load(MODEL.value, dtype=DTYPE.value)
    bar.update()
    bar.set_description("writing")
    registry.save(
      out, *model, form="huggingface" if TO.value == "hf" else "orbax"
    )
    bar.update()
    bar.set_description("reading back")
    # Only reading shows that the folder holds what was loaded, which this
    # command promises bit for bit.
    _compare(model, registry.load(out, dtype=DTYPE.value))
    bar.update()
  size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
  print(f"Wrote {out} ({size / 1e6:.0f} MB), read back bit for bit.")


def _plan(found: tuple[Any, Any, int] | None, out: pathlib.Path) -> None:
  """Prints what would be written; `found` is (config, tokenizer, size)."""
  if found is None:
    print(f"{MODEL.value} is not on this machine and would be fetched first")
    return
  cfg, tokenizer, parameters = found
  size = (4 if DTYPE.value == "float32" else 2) * parameters
  print(
    f"{MODEL.value}: {cfg.model_type}, {cfg.n_layers} layers, {parameters:,} "
    f"parameters\nwould write {size / 1e6:.0f} MB as {TO.value} to "
    f"{out}, {'with' if tokenizer else 'without'} a tokenizer; memory about "
    f"{12 * parameters / 1e9:.1f} GB, time about "
    f"{5 + parameters / 1e8:.0f} s"
  )


def _compare(model: "Model", again: "Model") -> None:
  """Checks that the written folder holds exactly what was loaded.

  Raises:
    ValueError: naming the first parameter that differs.
  """
  import numpy as np

  from sinkjax.weights.assemble import flatten

  old, new = flatten(model.params), flatten(again.params)
  for name, array in old.items():
    if not np.array_equal(np.asarray(array), np.asarray(new[name])):
      raise ValueError(f"{OUT.value}: parameter {name!r} was not written whole")


if __name__ == "__main__":
  app.run(main, __doc__)
