"""--find_sinks and --mask_out of `launch.analyze`: every sink, and masks."""

import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from sinkjax import limits

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from sinkjax.transforms.find_sinks import FoundSinks
  from sinkjax.weights.registry import Model

FIND_SINKS = flags.DEFINE_bool(
  "find_sinks",
  False,
  "Also find every sink, wherever it stands: tokens that many heads attend to, "
  "of a massive norm, or of the first token's direction in the layers in which "
  "that is a sink. They are printed, and written to found_sinks.csv and, as "
  "masks for whoever must treat such tokens apart, to sink_masks.npz (ids_0, "
  "mask_0 of the first text, and so on). Costs a second pass.",
)
MASK_OUT = flags.DEFINE_string(
  "mask_out",
  None,
  "A file.npz to which the masks of --find_sinks, which it asks for, are "
  "written besides, for whoever trains sparse autoencoders, quantises or keeps "
  "caches.",
)
SHOWN = 12
"""Rows that are printed; the file has all."""

TABLE, MASKS = "found_sinks.csv", "sink_masks.npz"


def asked() -> bool:
  """Whether sinks are looked for."""
  return FIND_SINKS.value or bool(MASK_OUT.value)


def check(out: pathlib.Path, *, overwrite: bool) -> None:
  """Refuses a --mask_out that cannot be written, or holds something else.

  Raises:
    ValueError: naming it.
  """
  if not MASK_OUT.value:
    return
  path, masks = _mask_out(), out / MASKS
  if path.suffix != ".npz" or path.is_dir():
    raise ValueError(f"--mask_out={path} must be a file that ends in .npz")
  same = masks.is_file() and path.is_file()
  same = same and limits.read_bytes(path) == limits.read_bytes(masks)
  if path.exists() and not overwrite and not same:
    raise ValueError(
      f"--mask_out={path} exists; choose another file or give --overwrite"
    )


def copy(out: pathlib.Path) -> None:
  """Writes the masks of a result to --mask_out."""
  if MASK_OUT.value:
    from sinkjax import artifacts

    artifacts.write_bytes(_mask_out(), limits.read_bytes(out / MASKS))
    print(f"\nMasks: {_mask_out()}")


def _mask_out() -> pathlib.Path:
  return pathlib.Path(MASK_OUT.value).expanduser()


def measure(model: "Model", prompts: list[list[int]]) -> "FoundSinks":
  """The sinks of every text, in the batches of the profile."""
  import numpy as np

  import sinkjax
  from sinkjax.analysis.sink_profile import batches
  from sinkjax.transforms.find_sinks import FoundSinks, find_sinks

  f, sinks, masks, lives = sinkjax.forward(model.cfg), [], {}, {}
  for texts in batches(prompts):
    found = find_sinks(f, model.params, np.asarray([prompts[i] for i in texts]))
    sinks += [s._replace(text=texts[s.text]) for s in found.sinks]
    masks |= dict(zip(texts, found.mask, strict=True))
    lives |= dict(zip(texts, found.life, strict=True))
  order = range(len(prompts))
  return FoundSinks(
    sorted(sinks), [masks[i] for i in order], [lives[i] for i in order]
  )


def record(found: "FoundSinks", tokenizer: Any) -> dict[str, Any]:
  """What `summary.json` keeps."""
  rows = [
    {**s._asdict(), "token_text": tokenizer.token(s.token)} for s in found.sinks
  ]
  life = [[int(a), int(b)] for a, b in found.life]
  return {"found_sinks": rows, "first_token_life": life}


def write(
  out: pathlib.Path,
  rows: list[dict[str, Any]],
  found: "FoundSinks",
  prompts: list[list[int]],
) -> None:
  """The table and the masks."""
  import numpy as np

  from sinkjax import artifacts
  from sinkjax.transforms.find_sinks import Sink

  names = [*Sink._fields, "token_text"]
  cells = [[row[name] for name in names] for row in rows]
  artifacts.write_csv(out / TABLE, names, cells)
  arrays = {}
  for i, (ids, mask) in enumerate(zip(prompts, found.mask, strict=True)):
    arrays |= {f"ids_{i}": np.asarray(ids), f"mask_{i}": mask}
  artifacts.write_npz(out / MASKS, arrays)


def show(data: dict[str, Any]) -> None:
  """The sinks that were found, those of most heads first."""
  rows = data.get("found_sinks")
  if rows is None:
    return
  print(f"\n  sinks found: {len(rows)}" + (f", in {TABLE}" if rows else ""))
  ranked = sorted(rows, key=lambda row: (-row["heads"], -row["norm"]))
  for row in ranked[:SHOWN]:
    text = f"text {row['text']}, " if len(data["tokens"]) > 1 else ""
    print(
      f"    {text}position {row['position']:<5}{row['token_text']!r:<14}"
      f"{row['kind']:<10}after layers {row['first_layer']} to "
      f"{row['last_layer']}, {row['heads']} heads, norm {row['norm']:.3g} and "
      f"values {row['value']:.2f} times the median"
    )
