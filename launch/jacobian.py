"""The exact Jacobian of a model: how every token depends on every other.

  python -m launch.jacobian --model=smollm2-135m --out=out/jacobian

takes the derivative of each token's residual stream after the last layer with
respect to each token's embedding, and writes a norm of every block [t, s]:

  jacobian.npz   norms [T, T], ids, and layers [L, T, T] or stderr if asked for
  summary.json   total mixing, effective reach, sensitivity of the loss, ...
  *.csv, *.png   the map, sensitivity by distance and by token, mixing by layer
  report.html    all of it on one page, self-contained

More:

  --edit='knockout key=0 from=2'     also with token 0 hidden from layer 2 on,
                          and the ratio of the two maps; --help has every edit
  --layers                the map after every layer, in the same pass
  --from=resid_mid@3 --to=final      between other points of the stream
  --norm=spectral         the largest singular value of every block
  --norm=spectral --bounds           over-squashing bounds beside the norms
  --method=hutchinson --samples=64   estimates, each with a standard error

Several devices: --mesh=fsdp:8 splits the weights over them, and whatever the
mesh, the columns are spread over all. With --dtype=bfloat16 the weights are
held in bfloat16, and each layer is cast to float32 when it is used.

Points are embed, resid_pre@L, resid_mid@L, resid_post@L and final. Without @L,
--from means the first layer and --to the last. The command first prints how
long it will take. If it is stopped, the columns that are complete are kept
(with --method=exact or reference, and but for those of the last half minute),
and the same command continues from there.

Of texts of 256 to 1,024 tokens, whose whole map would take days, chosen source
tokens alone: --max_tokens=512 --columns=0,1,100-107.

Days of work on several machines that share --out: the same command with
--part=1/8 to --part=8/8 on them, then once without --part, which joins what
they computed and writes the report. Where processes find each other, the same
command on each, with --distributed (TPU pods, Slurm), else with --coordinator,
--processes and --process, does both: each has the weights on its own devices
and computes its part, and process 0 writes.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import (
  accelerator_flag,
  app,
  columns_flag,
  devices,
  edit_flag,
  jacobian_table,
  part_flag,
  points,
  process_flags,
  train_processes,
)
from launch.accelerator_flag import ACCELERATOR
from launch.part_flag import PART
from sinkjax import outputs

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from launch.jacobian_run import Job
  from sinkjax.analysis.sensitivity_config import SensitivityConfig

MODEL = flags.DEFINE_string(
  "model", "smollm2-135m", "Name or path of the model."
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
TEXT_FILE = flags.DEFINE_string(
  "text_file", None, "File with the text, UTF-8; by default a built-in one."
)
PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file",
  None,
  'File with one {"text": "..."} or chat, {"messages": [...]}, a line, of '
  "which --prompt is taken.",
)
PROMPT = flags.DEFINE_integer(
  "prompt", 0, "With --prompts_file: which one, from 0; -1 is the last."
)
MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", 16, "How many tokens of the text to use, prefix included."
)
CHAT = flags.DEFINE_string(
  "chat",
  None,
  "A message to a chat model, in place of a text, put into the template of the "
  "model's own file. Prompts of --prompts_file may be chats, too.",
)
SYSTEM = flags.DEFINE_string(
  "system", None, "With --chat: the system message before it."
)
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put before the text: auto (BOS if the model's file says so), none, "
  "a token's text, or id:N for the token of id N. "
  "--prefix= is none, too, where a token has that name.",
)
METHOD = flags.DEFINE_enum(
  "method",
  "exact",
  ["exact", "reference", "hutchinson"],
  "exact: by layers folded into two matrices a token; reference: plain "
  "jax.jacfwd, slow; hutchinson: estimated from random directions.",
)
NORM = flags.DEFINE_enum(
  "norm", "fro", ["fro", "spectral", "max"], "Which norm of a block to take."
)
FROM = flags.DEFINE_string(
  "from", "embed", "Point at which a token is changed."
)
TO = flags.DEFINE_string(
  "to", "resid_post", "Point at which the change is measured."
)
LAYERS = flags.DEFINE_bool(
  "layers", False, "Compute the map after every layer, too."
)
BOUNDS = flags.DEFINE_bool(
  "bounds",
  False,
  "Compute over-squashing bounds on the map, too; needs --norm=spectral.",
)
BUDGET_GB = flags.DEFINE_float(
  "budget_gb",
  None,
  "Memory to use beside the weights. By default a quarter of the free memory, "
  "with --offload at most a twentieth of the weights.",
)
OFFLOAD = flags.DEFINE_bool(
  "offload", False, "Read one layer's weights at a time from the file."
)
SAMPLES = flags.DEFINE_integer(
  "samples", 64, "Random directions a token, for --method=hutchinson."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random directions.")
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan and write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace the result of another command in --out."
)


def main() -> None:
  """Checks the flags, then plans or computes."""
  if MAX_TOKENS.value < 2:
    raise ValueError(f"--max_tokens must be at least 2: {MAX_TOKENS.value}")
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  devices.check_offload(OFFLOAD.value)
  accelerator_flag.check(DRY_RUN.value, OFFLOAD.value)
  part_flag.check(METHOD.value)
  columns_flag.check(METHOD.value, BOUNDS.value)
  # Before a model is fetched; the text may turn out shorter.
  part_flag.given(MAX_TOKENS.value)
  columns_flag.given(MAX_TOKENS.value)
  config, edits = _config(), edit_flag.given()
  text = _text()
  if DRY_RUN.value:
    _dry_run(_prepare(text, config, edits))
    return
  out = pathlib.Path(OUT.value).expanduser()
  request = _request(text, edits)
  old = app.finished(out, request, model=MODEL.value, overwrite=OVERWRITE.value)
  if old is not None:
    with app.reading(out / "summary.json"):
      jacobian_table.show(old)
    return
  # Before anything asks for devices: the processes then know each other's.
  first = process_flags.join()
  app.warm_compiler()
  with train_processes.ending_together(part_flag.LEFT):
    job = _prepare(text, config, edits)
    from launch import jacobian_run  # which `_prepare` has imported

    if job.part is not None:
      jacobian_run.compute_part(job, out, overwrite=OVERWRITE.value)
    # With --part nothing is joined here: other commands have the other parts.
    train_processes.wait()
    if first and PART.value is None:
      _join(out, job, request)
    train_processes.wait()
  train_processes.leave()


def _join(out: pathlib.Path, job: "Job", request: dict[str, Any]) -> None:
  """Computes the columns that no part has, and writes the report."""
  from launch import jacobian_report, resume

  with (
    outputs.alone(out, keeps=resume.is_partial),
    part_flag.all_of(out) as parts,
  ):
    data = jacobian_report.write(
      out,
      dataclasses.replace(job, part=None),
      request,
      parts,
      overwrite=OVERWRITE.value,
    )
  jacobian_table.show(data)
  print(f"\nReport: {out / 'report.html'}  ({data['seconds']:.1f} s)")


def _text() -> Any:
  """The text or chat that the flags name.

  Raises:
    ValueError: as `prompts.read_texts`, or for a prompt that is not there.
  """
  from launch import prompts

  texts = prompts.read_texts(
    TEXT_FILE.value,
    PROMPTS_FILE.value,
    CHAT.value,
    SYSTEM.value,
    max_tokens=MAX_TOKENS.value,
  )
  if not -len(texts) <= PROMPT.value < len(texts):
    if not PROMPTS_FILE.value:
      raise ValueError("--prompt goes with --prompts_file")
    raise ValueError(
      f"--prompt={PROMPT.value} is not among the {len(texts)} of "
      f"{PROMPTS_FILE.value}"
    )
  return texts[PROMPT.value]


def _request(text: Any, edits: tuple[Any, ...]) -> dict[str, Any]:
  """What decides the result; neither --budget_gb nor --offload does."""
  kept = (MODEL, MAX_TOKENS, PREFIX, METHOD, NORM, FROM, TO, LAYERS, BOUNDS)
  # The other methods draw nothing, so that another seed asks for the same map.
  if METHOD.value == "hutchinson":
    kept += (SAMPLES, SEED)
  asked = {flag.name: flag.value for flag in kept}
  asked["edit"] = edit_flag.text(edits)
  if columns_flag.COLUMNS.value is not None:
    asked["columns"] = columns_flag.COLUMNS.value
  return {"text": text, **asked, **devices.request()}


def _config() -> "SensitivityConfig":
  from sinkjax.analysis.sensitivity_config import SensitivityConfig

  budget = BUDGET_GB.value
  wanted = ("spectral", "exact", "embed", "resid_post")
  if BOUNDS.value and wanted != tuple(
    flag.value for flag in (NORM, METHOD, FROM, TO)
  ):
    raise ValueError(
      "--bounds stand beside exact spectral norms of the whole model: add "
      "--norm=spectral, and leave out --method, --from and --to"
    )
  return SensitivityConfig(
    source=points.parse_point("from", FROM.value),
    target=points.parse_point("to", TO.value),
    norm=NORM.value,
    method=METHOD.value,
    per_layer=LAYERS.value,
    samples=SAMPLES.value,
    seed=SEED.value,
    budget_bytes=None if budget is None else int(budget * 1e9),
  )


def _prepare(
  text: str, config: "SensitivityConfig", edits: tuple[Any, ...]
) -> "Job | None":
  """Checks all that can be checked without weights.

  Returns:
    `None` in a dry run, for a model that would have to be fetched.
  """
  from launch import jacobian_run, prompts
  from sinkjax.weights import registry

  if OFFLOAD.value and config.method == "reference":
    raise ValueError(
      "--offload reads one layer at a time, which --method=reference cannot "
      "use: leave out one of them"
    )
  if not DRY_RUN.value:
    # This fetches the model, which `peek` does not: a dry run must fetch
    # nothing.
    registry.find(MODEL.value)
  known = registry.peek(MODEL.value)
  if known is None:
    return None
  cfg, tokenizer, parameters = known
  # A plan for devices elsewhere needs a config alone.
  planned = tokenizer is None and ACCELERATOR.value
  if not planned:
    prompts.need_tokenizer(tokenizer, MODEL.value)
  if OFFLOAD.value:
    config = jacobian_run.small_budget(config, parameters)
  prompts.need_room("max_tokens", MAX_TOKENS.value, cfg)
  encoded = prompts.Encoded([[0] * MAX_TOKENS.value], "none", None)
  if not planned:
    encoded = prompts.encode([text], tokenizer, PREFIX.value, MAX_TOKENS.value)
  # It raises for points that the model does not have, before weights are read.
  config.crossed(cfg)
  edit_flag.check(edits, cfg, len(encoded.ids[0]))
  return jacobian_run.Job(
    model=MODEL.value,
    cfg=cfg,
    tokenizer=tokenizer,
    parameters=parameters,
    encoded=encoded,
    config=config,
    edits=edits,
    bounds=BOUNDS.value,
    offload=OFFLOAD.value,
    part=part_flag.given(len(encoded.ids[0])),
    columns=columns_flag.given(len(encoded.ids[0])),
  )


def _dry_run(job: "Job | None") -> None:
  """What would be done, at what cost; fetches and writes nothing."""
  from launch import prompts
  from sinkjax.weights import registry

  print(f"model     {MODEL.value}")
  if job is None:
    print(f"          {registry.would_fetch(MODEL.value)}")
    return
  size, crossed = len(job.ids), job.config.crossed(job.cfg)
  print(
    f"          {job.cfg.n_layers} layers, {len(crossed)} of them crossed, "
    f"{job.parameters:,} parameters\n"
    f"map       {size} x {size} tokens, {FROM.value} to {TO.value}, "
    f"{NORM.value} norm, {METHOD.value}\n"
    f"columns   {size if job.columns is None else len(job.columns)} of {size}\n"
    f"edit      {job.edit}{', both maps' if job.edits else ''}"
  )
  if job.part is not None:
    number, count = job.part
    print(f"part      {number} of {count}: {len(job.whole()[0])} columns a map")
  if ACCELERATOR.value:
    from launch import accelerator_plan

    for line in accelerator_plan.jacobian_lines(
      job, ACCELERATOR.value, devices.MESH.value, devices.DTYPE.value
    ):
      print(line)
    return
  (seconds, memory), (weights, where) = job.cost(), job.weight_bytes()
  print(
    f"position 0  {prompts.name(job.tokenizer, job.ids[0])}\n"
    f"{job.encoded.plan()}"
    f"memory    about {memory / 1e9:.2f} GB beside "
    f"{weights / 1e9:.2f} GB of weights on {where}\n"
    f"time      about {app.duration(seconds)}, compilation included\n"
    f"writes    nothing (dry run); else to {OUT.value or '--out'}"
  )


if __name__ == "__main__":
  app.run(main, __doc__)
