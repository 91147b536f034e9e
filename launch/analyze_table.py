"""What `launch.analyze` prints: of a result, and of the models it reads."""

import textwrap
from typing import Any


def show(data: dict[str, Any]) -> None:
  """The numbers that matter, and the heads that sink most."""
  token = data["first_token"]
  bos = ", BOS" if token["is_bos"] else ""
  bos += "" if token["same_in_all_prompts"] else "; other prompts differ"
  lines = [
    ("model", data["model"]),
    ("position 0", f"{token['text']!r} (id {token['id']}{bos})"),
    ("tokens", f"{max(data['tokens'])} x {len(data['tokens'])}"),
  ]
  for eps, rate in data["sink_rate"].items():
    error = data["sink_rate_stderr"][eps]
    shown = f"{100 * rate:5.1f} %"
    shown += f" +- {100 * error:.1f}" if error is not None else ""
    lines.append((f"sink rate > {eps}", shown))
  massive = data["massive"]
  lines += [
    ("attention on it", f"{100 * data['first_token_mass']:5.1f} % (mean)"),
    (
      "largest activation",
      f"{massive['value']:,.0f} (layer "
      f"{massive['layer']}, position {massive['position']}, dimension "
      f"{massive['dimension']})",
    ),
    *_expert(data),
    ("loss", f"{data['nll']:.3f} nats a token"),
  ]
  print()
  for label, value in lines:
    print(f"  {label:<20}{value}")
  ranked = sorted(
    (
      (alpha, layer, head)
      for layer, row in enumerate(data["alpha_first"])
      for head, alpha in enumerate(row)
    ),
    reverse=True,
  )
  print("\n  strongest sink heads (layer.head: attention on position 0)")
  shown = [f"{layer}.{head}: {alpha:.2f}" for alpha, layer, head in ranked[:8]]
  for i in range(0, len(shown), 4):
    print("    " + "   ".join(f"{cell:<12}" for cell in shown[i : i + 4]))


def _expert(data: dict[str, Any]) -> list[tuple[str, str]]:
  """A line on the expert that writes most, for models that have some."""
  if "sink_expert" not in data:
    return []
  found = data["sink_expert"]
  share = data["expert_first_share"][found["layer"]][found["expert"]]
  where = f"layer {found['layer']}, expert {found['expert']}"
  return [
    ("first token's expert", f"{where}: {100 * share:.1f} % of the layer")
  ]


def list_models() -> None:
  """The models fetched by name, and the families of checkpoints."""
  import sinkjax
  from sinkjax.weights.families import ALL_LACK

  known = sinkjax.supported_models()
  width = max(len(row.name) for row in known)
  print("Models that --model fetches by name:")
  for row in known:
    if row.kind == "model":
      print(f"  {row.name:{width}}  {row.about}")
  print("Families of checkpoints, by model_type in config.json:")
  for row in known:
    if row.kind == "family":
      gguf = f"; GGUF files of architecture {row.gguf}" if row.gguf else ""
      print(f"  {row.name:{width}}  {row.about}{gguf}")
      if row.not_read:
        print(_wrapped(f"not: {row.not_read}", width + 4))
  print(_wrapped(f"Of none is supported: {ALL_LACK}.", 0))
  print(
    "sinkjax.supported_models() returns this list in Python.\n"
    "--model also takes a .gguf file, a Hugging Face folder, hf:org/name,\n"
    "hf:org/name@revision and hf:org/name:file.gguf."
  )


def _wrapped(text: str, indent: int) -> str:
  """Lines of at most 80 characters."""
  room = " " * indent
  return textwrap.fill(text, 80, initial_indent=room, subsequent_indent=room)
