"""Writes docs/parity.md, .json and .csv: our errors against transformers.

  python tests/golden/parity_table.py

Needs the extra `parity`. Every family's tiny model, every option switched on,
four kinds of batch, and SmolLM2 from its GGUF.
"""

import pathlib
import tempfile

import families
import jax
import torch
import transformers

import sinkjax
from sinkjax import artifacts
from sinkjax.weights.registry import fetch

DOCS = pathlib.Path(__file__).parents[2] / "docs"
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


def main():
  rows = []
  for name in families.configs():
    with tempfile.TemporaryDirectory() as folder:
      found = families.errors(name, folder, seed=11)
    worst = {
      site: max(case.get(site, 0.0) for case in found.values())
      for site in SITES
    }
    rows.append([name, *worst.values()])
  smollm2 = families.smollm2_errors(
    sinkjax.load("smollm2-135m"), fetch("smollm2-135m")
  )
  header = ["family", *SITES]
  versions = (
    f"transformers {transformers.__version__}, torch {torch.__version__}, "
    f"jax {jax.__version__}"
  )
  lines = [
    "# Parity with Hugging Face transformers",
    "",
    "Largest absolute error over every entry, float32 on a CPU. Tiny random "
    "models (3 layers, weights far from initialisation) with every option of "
    "the family switched on; the worst of single, batch, right-padded and "
    "left-padded inputs, padding excluded. `q`, `k`, `v` and `pattern` are "
    "recorded inside transformers' own attention. "
    f"Written by `tests/golden/parity_table.py` with {versions}.",
    "",
    "| " + " | ".join(header) + " |",
    "| " + " | ".join("---" for _ in header) + " |",
  ]
  for row in rows:
    cells = [row[0], *(f"{value:.0e}" for value in row[1:])]
    lines.append("| " + " | ".join(cells) + " |")
  lines += [
    "",
    "SmolLM2-135M, both reading the same Q4_1 GGUF, "
    f"{smollm2['tokens']} tokens: logits {smollm2['logits']:.1e}, attention "
    f"probabilities {smollm2['pattern']:.1e}, the most likely next token is "
    f"the same at {100 * smollm2['argmax agrees']:.0f} % of positions.",
  ]
  artifacts.write_text(DOCS / "parity.md", "\n".join(lines) + "\n")
  artifacts.write_csv(DOCS / "parity.csv", header, rows)
  table = [dict(zip(header, row, strict=True)) for row in rows]
  artifacts.write_json(
    DOCS / "parity.json",
    {"families": table, "smollm2": smollm2, "versions": versions},
  )
  print("\n".join(lines))


if __name__ == "__main__":
  main()
