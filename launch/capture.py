"""Writes a model's activations on a corpus to files, to train probes on.

  python -m launch.capture --model=smollm2-135m --corpus=sotu \\
    --sites=resid_post@4,mlp_out@-1 --windows=1000 --out=out/acts

Documents are cut into windows of --length tokens, each with the model's prefix
before it; what is left of a document that fills no window is left out. Records
of "messages" are chats, in the template of the model's file; of each its first
window is taken. It writes to --out:

  part-*.safetensors  tokens [N, T], document [N], start [N], and an array
                      [N, P, ...] for each site and layer, "resid_post.4"
  capture.json        the parts with their SHA-256, and every array's shape
  summary.json        config, versions, command

Sites are those of the model that have a value at each token: embed, resid_pre,
attn_in, q, k, v, z, attn_out, resid_mid, mlp_in, mlp_act, mlp_out, resid_post,
final. Without @L a site means all its layers; @-1 is the last.

  --positions=1:          all tokens but the first, which is the sink
  --positions=0,1,-1      the first, the second and the last
  --store=bfloat16        half of the bytes on disk
  --edit='knockout key=0'   of the edited model; --help has every edit
  --mesh, --dtype         as for launch.analyze

If it is stopped, parts that are written are kept, and the same command goes on
with the next, also on another mesh. In Python,
sinkjax.data.activations.Activations reads the folder back, as a source for
grain.
"""

import hashlib
import itertools
import json
import pathlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from launch import app, devices, edit_flag, points
from sinkjax import artifacts, outputs, provenance

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from launch.prompts import Encoded
  from sinkjax.config import ModelConfig
  from sinkjax.data.activations import Windows
  from sinkjax.weights.tokenizer import Tokenizer

MODEL = flags.DEFINE_string("model", "smollm2-135m", "A model's name or path.")
CORPUS = flags.DEFINE_list(
  "corpus",
  None,
  "Names (sotu, wiki-vital, manuals), files of texts or chats, or folders of "
  "text files, see launch.corpus --help.",
)
SITES = flags.DEFINE_list(
  "sites", ["resid_post"], "Sites, each with @LAYER or for all layers."
)
POSITIONS = flags.DEFINE_string(
  "positions",
  ":",
  "Which tokens of a window: numbers, or START:STOP; negative ones count from "
  "the end.",
)
LENGTH = flags.DEFINE_integer(
  "length", 128, "Tokens of a window, prefix included.", lower_bound=2
)
WINDOWS = flags.DEFINE_integer(
  "windows", 1000, "How many windows at most; 0 for all.", lower_bound=0
)
BATCH = flags.DEFINE_integer(
  "batch", 8, "Windows of a forward pass.", lower_bound=1
)
STORE = flags.DEFINE_enum(
  "store",
  "float32",
  ["float32", "float16", "bfloat16"],
  "What activations are on disk. float16 ends at 65,504, which massive "
  "activations may exceed: such a value is refused.",
)
PART_MB = flags.DEFINE_float(
  "part_mb", 256.0, "The greatest size of a part, in MB.", lower_bound=0.001
)
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put before each window: auto (BOS if the model's file says so), none, "
  "a token's text, or id:N for the token of id N. "
  "--prefix= is none, too, where a token has that name.",
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan and write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace the result of another command in --out."
)


class Job(NamedTuple):
  """A checked request.

  Attributes:
    cfg: the model's config.
    tokenizer: its tokenizer.
    windows: the texts.
    encoded: what stands before every window, without ids.
    layers: of every site.
    positions: that are kept.
    each: bytes that a window takes on disk.
    edits: of --edit.
  """

  cfg: "ModelConfig"
  tokenizer: "Tokenizer"
  windows: "Windows"
  encoded: "Encoded"
  layers: dict[str, list[int]]
  positions: list[int]
  each: int
  edits: tuple[Any, ...]

  def size(self) -> int:
    """Windows of a part."""
    return max(1, int(PART_MB.value * 1e6 / self.each))

  def starts(self) -> range:
    """The first window of every part."""
    return range(0, len(self.windows.tokens), self.size())


def main() -> None:
  """Checks the flags, then plans or captures."""
  for flag in (CORPUS, OUT):
    if not flag.value and not (flag is OUT and DRY_RUN.value):
      raise ValueError(f"--{flag.name} is missing; see --help")
  from sinkjax.weights import registry

  if not DRY_RUN.value:
    registry.find(MODEL.value)
  known = registry.peek(MODEL.value)
  if known is None:
    print(f"{MODEL.value}: {registry.would_fetch(MODEL.value)}")
    return
  job = _checked(*known[:2])
  if DRY_RUN.value:
    _plan(job, known[2])
    return
  out, request = pathlib.Path(OUT.value).expanduser(), _request(job)
  old = app.finished(out, request, model=MODEL.value, overwrite=OVERWRITE.value)
  if old is None:
    with outputs.alone(out, keeps=_resumed):
      old = _capture(job, out, request)
  total = sum(part["windows"] for part in old["parts"])
  print(f"{total} windows in {len(old['parts'])} parts: {out}")


def _resumed(path: pathlib.Path) -> bool:
  """Whether the same command goes on from a file."""
  return path.name.startswith("part-")


def _checked(cfg: "ModelConfig", tokenizer: "Tokenizer | None") -> Job:
  """Everything that can be checked without weights.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  import jax

  from launch import prompts
  from sinkjax.analysis.activations import activations, chosen_layers
  from sinkjax.models.transformer import param_shapes

  prompts.need_tokenizer(tokenizer, MODEL.value)
  prompts.need_room("length", LENGTH.value, cfg)
  parsed = [points.parse_point("sites", text) for text in SITES.value]
  layers = chosen_layers(cfg, parsed)
  positions = _positions(POSITIONS.value, LENGTH.value)
  edits = edit_flag.given()
  edit_flag.check(edits, cfg, LENGTH.value)
  windows, encoded = _windows(tokenizer)
  run = activations(cfg, layers, positions=positions, dtype=STORE.value)
  shapes = jax.eval_shape(run, param_shapes(cfg), windows.tokens[:1])
  each = sum(x.size * x.dtype.itemsize for x in shapes.values())
  each += 4 * (LENGTH.value + 2)
  return Job(cfg, tokenizer, windows, encoded, layers, positions, each, edits)


def _windows(tokenizer: "Tokenizer") -> "tuple[Windows, Encoded]":
  """The windows, and what stands before each."""
  from launch import prompts
  from sinkjax.data import activations as files
  from sinkjax.data.corpus import gather
  from sinkjax.weights.chat import encode_chats

  texts = gather(CORPUS.value, chats=True).texts
  if chats := prompts.only_chats(texts, PREFIX.value):
    prefix, rendered = [], encode_chats(tokenizer, chats, answer=False)
    first = next(rendered)
    system = prompts.system_of(chats[0], tokenizer)
    about = prompts.Encoded([], "chat template", first.before, *system)
    rows = (one.ids for one in itertools.chain([first], rendered))
  else:
    prefix, why = prompts.resolve_prefix(PREFIX.value, tokenizer)
    about = prompts.Encoded([], why, None)
    rows = (tokenizer.encode(text) for text in texts)
  windows = files.cut(
    rows,
    length=LENGTH.value,
    prefix=prefix,
    most=WINDOWS.value or None,
    # The template stands at a chat's beginning alone.
    whole=not chats,
  )
  return windows, about


def _positions(text: str, length: int) -> list[int]:
  """The tokens that --positions names, in order.

  Raises:
    ValueError: for anything else, or a token outside the window.

  >>> _positions("1:4", 8), _positions("0,-1", 8)
  ([1, 2, 3], [0, 7])
  """
  try:
    if ":" in text:
      start, stop = (int(part) if part else None for part in text.split(":"))
      found = list(range(length))[start:stop]
    else:
      found = sorted({range(length)[int(part)] for part in text.split(",")})
  except (ValueError, IndexError):
    found = []
  if not found:
    raise ValueError(
      f"--positions={text} names no token of a window of {length}: write "
      "0,1,-1 or START:STOP"
    )
  return found


def _request(job: Job) -> dict[str, Any]:
  """What decides the result; neither --batch nor the mesh does."""
  return {
    "model": MODEL.value,
    "corpus": CORPUS.value,
    # The texts themselves: a file whose content has changed is another corpus.
    "windows": hashlib.sha256(job.windows.tokens.tobytes()).hexdigest(),
    "layers": job.layers,
    "positions": job.positions,
    "store": STORE.value,
    "part_windows": job.size(),
    **edit_flag.record(job.edits),
    **devices.request(),
  }


def _plan(job: Job, parameters: int) -> None:
  """What would be done, at what cost; fetches no model and writes nothing."""
  from launch import host_rates, prompts

  weights, where = devices.planned(job.cfg)
  count, length = job.windows.tokens.shape
  host = host_rates.measure()
  seconds = host.seconds(
    host_rates.START,
    host_rates.forward_seconds(job.cfg, parameters, [length] * count, host),
  )
  first = prompts.name(job.tokenizer, int(job.windows.tokens[0, 0]))
  some = ", ".join(f"{site}: {len(x)}" for site, x in job.layers.items())
  print(
    f"model     {MODEL.value}, {parameters:,} parameters\n"
    f"windows   {count} of {length} tokens; {job.windows.left_out} tokens are "
    f"left out\n"
    f"position 0  {first}\n"
    f"{job.encoded.plan()}"
    f"{edit_flag.plan(job.edits)}"
    f"layers    {some}; {len(job.positions)} positions of a window\n"
    f"memory    {weights / 1e9:.2f} GB of weights on {where}; a part of "
    f"{job.each * min(count, job.size()) / 1e6:.1f} MB on the host\n"
    f"writes    {count * job.each / 1e6:.1f} MB in {len(job.starts())} parts "
    f"(not in a dry run)\n"
    f"time      about {app.duration(seconds)}, compilation included"
  )


def _capture(
  job: Job, out: pathlib.Path, request: dict[str, Any]
) -> dict[str, Any]:
  """Writes the parts that are missing; returns what `summary.json` holds."""
  from launch import prompts
  from sinkjax.data import activations as files
  from sinkjax.weights import identity

  start = time.monotonic()
  # Before they are read: a file that is replaced meanwhile is another one.
  weights = identity.of(MODEL.value, without=out)
  text = json.dumps([request, weights["sha256"]], sort_keys=True)
  mark = hashlib.sha256(text.encode()).hexdigest()
  if OVERWRITE.value:
    for path in out.glob("part-*.safetensors"):
      path.unlink()
  starts = job.starts()
  missing = [
    number
    for number in range(len(starts))
    if not files.has_part(out, number, mark)
  ]
  placed = edit_flag.record(job.edits)
  if missing:
    placed |= _write_parts(job, out, mark, missing)
  names = [f"part-{number:05}.safetensors" for number in range(len(starts))]
  manifest = files.finish(out, names)
  first = int(job.windows.tokens[0, 0])
  data = {
    "model": MODEL.value,
    "weights": weights,
    "config": job.cfg.to_dict(),
    "first_token": prompts.first_token(
      job.tokenizer, first, job.encoded.prefix
    ),
    **job.encoded.record(),
    "tokens_left_out": job.windows.left_out,
    **manifest,
    "resumed_parts": len(starts) - len(missing),
    "versions": provenance.versions(),
    "commit": provenance.commit(),
    "device": provenance.device(),
    **placed,
    "seed": None,
    "command": provenance.command("capture"),
    "request": request,
    "seconds": time.monotonic() - start,
    "complete": True,
  }
  # Last, because `app.finished` takes a folder with this file for complete.
  artifacts.write_json(out / "summary.json", data)
  return artifacts.plain(data)


def _write_parts(
  job: Job, out: pathlib.Path, mark: str, missing: list[int]
) -> dict[str, Any]:
  """Writes some parts; returns the edit and where the weights were."""
  import numpy as np

  from sinkjax import finite
  from sinkjax.analysis.activations import activations
  from sinkjax.data import activations as files

  app.warm_compiler()
  model = devices.load(MODEL.value)
  windows = job.windows.tokens.tolist() if job.edits else []
  cfg, about = edit_flag.of_model(job.edits, model.params, model.cfg, windows)
  run = activations(cfg, job.layers, positions=job.positions, dtype=STORE.value)
  tokens, batch = job.windows.tokens, BATCH.value
  with artifacts.bar("capturing") as progress:
    for done, number in enumerate(missing):
      progress(done, len(missing))
      first = job.starts()[number]
      stop = min(first + job.size(), len(tokens))
      pieces: dict[str, list[np.ndarray]] = {}
      for at in range(first, stop, batch):
        rows = np.arange(at, at + batch)
        # The last batch repeats its last window, so that all share a program.
        some = run(model.params, tokens[np.minimum(rows, stop - 1)])
        for name, value in some.items():
          value = np.asarray(value)[: stop - at]
          finite.require(
            value.astype(np.float32),
            f"an activation at {name} as {STORE.value}",
          )
          pieces.setdefault(name, []).append(value)
      arrays = {name: np.concatenate(some) for name, some in pieces.items()}
      files.write_part(
        out, number, {**job.windows.part(first, stop), **arrays}, mark
      )
  return {**about, **devices.described(model.params)}


if __name__ == "__main__":
  app.run(main, __doc__)
