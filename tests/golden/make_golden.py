"""Writes the golden values of the parity tests.

  python tests/golden/make_golden.py [NAME ...]

Needs the extra `parity` and, for `glassllm`, that package. Written are the
golden models named, or those that are not there yet. For a folder under
`families/`, with its `config.json` in place: the tiny model's weights and what
transformers computes with it. For `smollm2-135m`: transformers' own reading of
the same GGUF file. For `glassllm`: its own numpy code.
"""

import pathlib
import sys

import families
import numpy as np
from recorder import Recorder

HERE = pathlib.Path(__file__).parent


def write_family(name):
  """What `families.py` says, with the whole config as transformers has it."""
  folder = families.FOLDER / name
  model = families.build(name)
  model.save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  record = Recorder(model)
  arrays = {}
  for case, (tokens, valid, positions) in families.inputs().items():
    kept = None if case == "single" else ("logits", "pattern", "resid_post")
    for site, value in record(tokens, valid, positions).items():
      if kept is None or site in kept:
        arrays[f"{case}/{site}"] = value.astype(np.float32)
  np.savez_compressed(folder / "golden.npz", **arrays)
  print(name, sum(a.nbytes for a in arrays.values()) // 1024, "KiB")


def write_smollm2():
  """Transformers on SmolLM2's GGUF: random entries of logits and attention."""
  import sinkjax
  from sinkjax.weights.registry import fetch

  tokenizer = sinkjax.load("smollm2-135m").tokenizer
  ids = tokenizer.encode(families.SMOLLM2_TEXT)[:192]
  logits, pattern = families.smollm2_reference(fetch("smollm2-135m"), ids)
  rng = np.random.default_rng(0)
  arrays = {"ids": np.array(ids, np.int32)}
  for name, values in (("logits", logits), ("pattern", pattern)):
    at = np.sort(rng.integers(0, values.size, 15000))
    arrays[f"{name}_at"] = at.astype(np.int32)
    arrays[name] = values.ravel()[at].astype(np.float32)
  arrays["top"] = logits.argmax(axis=-1).astype(np.int32)
  arrays["first"] = pattern[..., 0].mean(axis=-1).astype(np.float32)
  np.savez_compressed(HERE / "smollm2.npz", **arrays)
  print("smollm2")


def write_glassllm():
  """The glassllm package's own forward pass (needs that package)."""
  import glassllm

  text = "Once upon a time there was a king who had three sons."
  arrays = {}
  for language in ("en", "pt"):
    model, tokenizer = glassllm.load_pretrained(language)
    ids = tokenizer.encode(text)[:24]
    arrays[f"{language}_ids"] = np.array(ids, np.int32)
    arrays[f"{language}_logits"] = np.asarray(model(ids).data[0], np.float32)
  np.savez_compressed(HERE / "glassllm.npz", **arrays)
  print("glassllm")


def main(names):
  """Writes the models named, or all that are not there."""
  outputs = {
    name: (families.FOLDER / name / "golden.npz", write_family, (name,))
    for name in families.names()
  }
  outputs["smollm2-135m"] = (HERE / "smollm2.npz", write_smollm2, ())
  outputs["glassllm"] = (HERE / "glassllm.npz", write_glassllm, ())
  for name in names:
    if name not in outputs:
      raise SystemExit(f"unknown golden model {name!r}; known: {list(outputs)}")
  for name, (path, write, arguments) in outputs.items():
    if name in names or not (names or path.exists()):
      write(*arguments)


if __name__ == "__main__":
  main(sys.argv[1:])
