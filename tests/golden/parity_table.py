"""Writes docs/parity.md, .json and .csv: our errors against transformers.

  python tests/golden/parity_table.py [--redraw]

Every golden model, every option of its family switched on, four kinds of batch;
and SmolLM2 from its GGUF. Needs the extra `parity`, but for `--redraw`, which
draws the page again from the recorded numbers and the table of families.
"""

import json
import pathlib
import sys
import tempfile

from sinkjax import artifacts
from sinkjax.weights import families as registry

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
SITES = (
  "pattern",
  "q",
  "k",
  "v",
  "z",
  "attn_out",
  "mlp_out",
  "resid_post",
  "final",
  "logits",
)


def measure():
  """What parity.json holds: the largest errors, and the versions."""
  import families
  import jax
  import torch
  import transformers

  import sinkjax
  from sinkjax.weights.registry import fetch

  rows = []
  for name in families.names():
    with tempfile.TemporaryDirectory() as folder:
      found = families.errors(name, folder, seed=11)
    worst = {
      site: max(case.get(site, 0.0) for case in found.values())
      for site in SITES
    }
    rows.append({"family": name, **worst})
  return {
    "families": rows,
    "smollm2": families.smollm2_errors(
      sinkjax.load("smollm2-135m"), fetch("smollm2-135m")
    ),
    "versions": (
      f"transformers {transformers.__version__}, torch {torch.__version__}, "
      f"jax {jax.__version__}"
    ),
  }


def page(found):
  """parity.md, family by family in the order of the table of families."""
  header = ["family", "tiny model", "GGUF", *SITES]
  lines = [
    "# Parity with Hugging Face transformers",
    "",
    "Largest absolute error over every entry, float32 on a CPU. Tiny random "
    "models (3 layers, weights far from initialisation) with every option of "
    "the family switched on; the worst of single, batch, right-padded and "
    "left-padded inputs, padding excluded. `q`, `k`, `v` and `pattern` are "
    "recorded inside transformers' own attention. The family is the "
    "`model_type` of `config.json`; under GGUF stands llama.cpp's name of its "
    "architecture, where such files are read under a name of its own. "
    f"Written by `tests/golden/parity_table.py` with {found['versions']}.",
    "",
    "| " + " | ".join(header) + " |",
    "| " + " | ".join("---" for _ in header) + " |",
  ]
  for row in sorted(found["families"], key=lambda r: _family(r["family"]).name):
    family = _family(row["family"])
    cells = [
      f"`{family.name}`",
      row["family"],
      f"`{family.gguf.architecture}`" if family.gguf else "",
      *(f"{row[site]:.0e}" for site in SITES),
    ]
    lines.append("| " + " | ".join(cells) + " |")
  smollm2 = found["smollm2"]
  lines += [
    "",
    "SmolLM2-135M, both reading the same Q4_1 GGUF, "
    f"{smollm2['tokens']} tokens: logits {smollm2['logits']:.1e}, attention "
    f"probabilities {smollm2['pattern']:.1e}, the most likely next token is "
    f"the same at {100 * smollm2['argmax agrees']:.0f} % of positions.",
  ]
  return "\n".join(lines) + "\n"


def _family(model):
  """The family of a golden model."""
  config = json.loads((HERE / "families" / model / "config.json").read_text())
  return registry.find(config["model_type"])


def main(redraw=False):
  """Measures, unless told to redraw, and writes."""
  if redraw:
    found = json.loads((DOCS / "parity.json").read_text())
  else:
    found = measure()
    artifacts.write_json(DOCS / "parity.json", found)
    header = ["family", *SITES]
    rows = [[row[key] for key in header] for row in found["families"]]
    artifacts.write_csv(DOCS / "parity.csv", header, rows)
  artifacts.write_text(DOCS / "parity.md", page(found))
  print(page(found), end="")


if __name__ == "__main__":
  main("--redraw" in sys.argv[1:])
