"""The families of models that can be read and written, one file each.

A family's file reads a Hugging Face `config.json` into a `ModelConfig` with
that family's defaults and writes one back, says where each parameter lies in
the family's safetensors and GGUF files, and ends in `register(Family(...))`.
Every module of this folder is imported here, but those that begin with "_",
which are what families share: `_config` (config.json), `_tensors` (names and
layouts), `_gguf` (metadata and names of llama.cpp), `_family` (the table).

To add a family:

First write its file here; `llama.py` and `gpt2.py` are a plain and a full
example. Then make a golden model, `tests/golden/families/NAME/config.json`,
small and with every option of the family switched on, and run
`python tests/golden/make_golden.py NAME`. Last run
`python tests/golden/parity_table.py` and the tests of `tests/weights`.

Readers, writers, tests and the parity page find both by themselves: no other
file names a family, and a test holds that. A family that is not ours can
`register` itself from anywhere, before a model of it is loaded.
"""

import importlib
import pkgutil

from sinkjax.weights.families._family import (
  ALL_LACK,
  FAMILIES,
  Family,
  Gguf,
  find,
  find_architecture,
  register,
)

__all__ = [
  "ALL_LACK",
  "FAMILIES",
  "Family",
  "Gguf",
  "find",
  "find_architecture",
  "register",
]


def import_all() -> None:
  """Imports every family's module, which registers it."""
  for module in pkgutil.iter_modules(__path__):
    if not module.name.startswith("_"):
      importlib.import_module(f"{__name__}.{module.name}")


import_all()
