"""What `launch.jacobian` writes: the whole map, or chosen columns of it."""

import pathlib
from collections.abc import Sequence
from typing import Any

from launch import jacobian_run, prompts
from launch.jacobian_run import Job
from sinkjax import artifacts, provenance
from sinkjax.analysis.sensitivity import Sensitivity
from sinkjax.report.sensitivity import columns
from sinkjax.report.sensitivity import page as whole
from sinkjax.weights import identity


def write(
  out: pathlib.Path,
  job: Job,
  request: dict[str, Any],
  parts: Sequence[pathlib.Path],
  *,
  overwrite: bool,
) -> dict[str, Any]:
  """Computes the maps and writes everything to `out`.

  Args:
    out: the folder of --out, which this process holds.
    job: what is computed.
    request: the flags that decide the result.
    parts: folders in which parts of the columns are.
    overwrite: whether what another command left of its columns goes.

  Returns:
    What `summary.json` holds.
  """
  report = whole if job.columns is None else columns
  # Before they are read: a file that is replaced meanwhile is another one.
  weights = identity.of(job.model, without=out)
  partial = job.partial(
    out, weights["sha256"], overwrite=overwrite, parts=parts
  )
  result, about = jacobian_run.compute(job, partial)
  tokens = [job.tokenizer.token(t) for t in job.ids]
  drawn = report.draw(result, tokens)
  data = {
    **report.summary(result),
    "model": job.model,
    "weights": weights,
    "config": job.cfg.to_dict(),
    "first_token": prompts.first_token(
      job.tokenizer, job.ids[0], job.encoded.prefix
    ),
    **job.encoded.record(),
    **about,
    "tokens_text": tokens,
    "versions": provenance.versions(),
    "commit": provenance.commit(),
    "device": provenance.device(),
    "seed": request.get("seed"),
    "offload": job.offload,
    "resumed_columns": partial.resumed,
    "command": provenance.command("jacobian"),
    "request": request,
    # With the time of interrupted runs, whose columns are in the map.
    "seconds": partial.elapsed(),
  }
  page = report.render(
    result,
    data,
    tokens,
    drawn,
    subtitle=(
      f"{request['from']} to {request['to']}, {len(tokens)} tokens, "
      f"edit: {job.edit}. "
      f"{prompts.describe_first(data['first_token'])}"
    ),
    warnings=_warnings(result, job),
    details={
      name: data[name]
      for name in ("model", "device", "commit", "versions", "config")
    },
  )
  report.write(out, result, data, tokens, drawn, page)
  # The columns may go only now that the report with them is on the disk.
  partial.delete()
  return artifacts.plain(data)


def _warnings(result: Sensitivity, job: Job) -> list[str]:
  notes = []
  if chat := job.encoded.record():
    notes.append(prompts.describe_template(chat))
  if result.config.method != "hutchinson":
    return notes
  return [
    *notes,
    f"These norms are estimates from {result.config.samples} random "
    "directions a token; norms.csv has the standard error of each.",
  ]
