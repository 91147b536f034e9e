"""Writes the golden values of the parity tests: `python tests/golden/make_golden.py`.

Needs the extra `parity`. For each family: the tiny model as a Hugging Face
folder and what transformers computes with it. For SmolLM2: transformers' own
reading of the same GGUF file.
"""

import pathlib
import shutil
import sys

import families
import numpy as np

HERE = pathlib.Path(__file__).parent


def write_families():
  for name, config in families.configs().items():
    folder = HERE / "families" / name
    shutil.rmtree(folder, ignore_errors=True)
    model = families.build(config)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    record = families.Recorder(model)
    arrays = {}
    for case, (tokens, valid, positions) in families.inputs().items():
      kept = ("logits", "pattern", "resid_post")
      if case == "single":
        kept = None
      for site, value in record(tokens, valid, positions).items():
        if kept is None or site in kept:
          arrays[f"{case}/{site}"] = value.astype(np.float32)
    np.savez_compressed(folder / "golden.npz", **arrays)
    print(name, sum(a.nbytes for a in arrays.values()) // 1024, "KiB")


if __name__ == "__main__":
  sys.path.insert(0, str(HERE))
  write_families()
