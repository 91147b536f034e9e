"""Writes docs/parity.md, .json and .csv: our errors against transformers.

  python tests/golden/parity_table.py [NAME ... | --redraw]

Every golden model, every option of its family switched on, four kinds of batch;
and SmolLM2 from its GGUF. Needs the extra `parity`, but for `--redraw`, which
draws the page again from the recorded numbers and the table of families. With
names of golden models only their rows are measured, and the others are kept if
they were measured with the same versions.
"""

import json
import pathlib
import sys
import tempfile

from sinkjax import artifacts
from sinkjax.weights import families as registry
from sinkjax.weights import huggingface

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
SITES = (
  "pattern",
  "sink",
  "q",
  "k",
  "v",
  "z",
  "attn_out",
  "router_logits",
  "mlp_out",
  "resid_post",
  "final",
  "logits",
)


def measure(names=(), recorded=None):
  """What parity.json holds: the largest errors, and the versions.

  Args:
    names: of the golden models, or none for all of them and SmolLM2.
    recorded: what is kept of the others.
  """
  import families
  import jax
  import torch
  import transformers

  import sinkjax
  from sinkjax.weights.registry import fetch

  versions = (
    f"transformers {transformers.__version__}, torch {torch.__version__}, "
    f"jax {jax.__version__}"
  )
  rows = []
  if names:
    if recorded["versions"] != versions:
      raise SystemExit(
        f"recorded with {recorded['versions']}, here are {versions}: measure "
        "all, without names"
      )
    rows = [row for row in recorded["families"] if row["family"] not in names]
  for name in names or families.names():
    with tempfile.TemporaryDirectory() as folder:
      found = families.errors(name, folder, seed=11)
    worst = {
      site: max(case[site] for case in found.values() if site in case)
      for site in SITES
      if site in found["single"]
    }
    rows.append({"family": name, **worst})
  rows.sort(key=lambda row: row["family"])
  smollm2 = (
    recorded["smollm2"]
    if names
    else families.smollm2_errors(
      sinkjax.load("smollm2-135m"), fetch("smollm2-135m")
    )
  )
  return {"families": rows, "smollm2": smollm2, "versions": versions}


def page(found):
  """parity.md, family by family in the order of the table of families."""
  header = ["family", "tiny model", "GGUF", "rows sum to", *SITES]
  lines = [
    "# Parity with Hugging Face transformers",
    "",
    "Largest absolute error over every entry, float32 on a CPU. Tiny random "
    "models (3 layers, weights far from initialisation) with every option of "
    "the family switched on; the worst of single, batch, right-padded and "
    "left-padded inputs, padding excluded. `q`, `k`, `v` and `pattern` are "
    "recorded inside transformers' own attention; `sink` is the weight that a "
    "learned sink takes, in families that have one. The family is the "
    "`model_type` of `config.json`; under GGUF stands llama.cpp's name of its "
    "architecture, where such files are read under a name of its own. Rows of "
    "attention are over tokens: they sum to 1, or to less where a learned "
    "sink, which is no token, has the rest. `alpha` and `first_token_mass` are "
    "then the weight on the first token alone, `learned_sink_mass` is that on "
    "the learned sink, and `first_and_learned_mass` that on both. "
    f"Written by `tests/golden/parity_table.py` with {found['versions']}.",
    "",
    "| " + " | ".join(header) + " |",
    "| " + " | ".join("---" for _ in header) + " |",
  ]
  for row in sorted(found["families"], key=lambda r: _family(r["family"]).name):
    family = _family(row["family"])
    # llama.cpp has Qwen 3 without gates, and Falcon without ALiBi.
    missing = row["family"].startswith("gated_") or (
      row["family"] == "falcon_alibi"
    )
    form = None if missing else family.gguf
    cells = [
      f"`{family.name}`",
      row["family"],
      f"`{form.architecture}`" if form else "",
      _row_sum(row["family"]),
      *(f"{row[site]:.0e}" if row.get(site) else "" for site in SITES),
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
  lines += _not_read()
  return "\n".join(lines) + "\n"


def _not_read():
  """What of each family is not supported, by the table of families."""
  lines = [
    "",
    "## What of a family is not supported",
    "",
    "It is refused by its name, by `--dry_run` too, where it is not said to be "
    f"left out. Of no family are supported {registry.ALL_LACK}.",
    "",
    "| family | not supported |",
    "| --- | --- |",
  ]
  for name, family in sorted(registry.FAMILIES.items()):
    lacks = [family.not_read] if family.not_read else []
    lacks += [] if family.gguf else ["GGUF files that name it"]
    lines.append(f"| `{name}` | {'; '.join(lacks) or 'nothing else'} |")
  return lines


def _row_sum(model):
  """What the attention of a golden model over tokens sums to."""
  cfg = huggingface.load_config(HERE / "families" / model)
  return "less: a learned sink" if cfg.learned_sink else "1"


def _family(model):
  """The family of a golden model."""
  config = json.loads((HERE / "families" / model / "config.json").read_text())
  return registry.find(config["model_type"])


def main(arguments):
  """Measures, unless told to redraw, and writes."""
  found = json.loads((DOCS / "parity.json").read_text())
  if arguments != ["--redraw"]:
    found = measure(arguments, found)
    artifacts.write_json(DOCS / "parity.json", found)
    header = ["family", *SITES]
    rows = [[row.get(key, "") for key in header] for row in found["families"]]
    artifacts.write_csv(DOCS / "parity.csv", header, rows)
  artifacts.write_text(DOCS / "parity.md", page(found))
  print(page(found), end="")


if __name__ == "__main__":
  main(sys.argv[1:])
