"""Runs of text models: how they are trained, and what is measured at the end.

Each run is a `TrainConfig`; experiments only choose which. A trained model is
measured on the starts of held-out documents, with what training put in front
of a text and without it, on the same targets.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax import artifacts, limits, sharding
from sinkjax.config import ModelConfig
from sinkjax.data.prepare import Prepared, prepare
from sinkjax.experiments.harness.jobs import Advance, Job
from sinkjax.metrics.sinks import attention_entropy, attention_share, sink_score
from sinkjax.models.transformer import Params, forward
from sinkjax.train import checkpoint, loop
from sinkjax.train.loss import next_token_nats
from sinkjax.train.probe import make_probe, uniform_mass
from sinkjax.train.run_config import TrainConfig
from sinkjax.transforms.capture import capture
from sinkjax.weights import orbax_io

BATCH = 16
"""Rows of a forward pass of the measurements: one shape, compiled once."""

ROOM = 8
"""Tokens at the end of a text whose loss is not counted: at most as many stand
in front, so the loss is on the same targets whatever does."""


def text_jobs(
  variants: Mapping[str, TrainConfig], seeds: Sequence[int]
) -> list[Job]:
  """A job for every variant and seed, named VARIANT-SEED.

  The seed is of parameters and data order; the held-out documents are the same
  for all. Jobs go one seed after the other: processes that share a sweep then
  compile different programs, and every later seed finds them compiled.
  """

  def job(name: str, seed: int) -> Job:
    config = dataclasses.replace(variants[name], seed=seed)

    def work(folder, device, advance):
      found = made_before(config, folder)
      return found or train_and_measure(config, folder, device, advance)

    request = {"variant": name, "config": config.to_dict()}
    return Job(f"{name}-{seed}", config.steps, request, work)

  return [job(name, seed) for seed in seeds for name in variants]


def made_before(
  config: TrainConfig, folder: pathlib.Path
) -> dict[str, Any] | None:
  """The outcome of the same run, if another experiment in --out has made it.

  Args:
    config: of the run.
    folder: of the run, EXPERIMENT/runs/NAME; the model is copied to it.

  Returns:
    What `train_and_measure` gave, or `None` where no experiment has the run.
  """
  request = artifacts.plain(config.to_dict())
  # `folder` is OUT/EXPERIMENT/runs/NAME, so this is OUT.
  for path in sorted(folder.parents[2].glob("*/runs/*.json")):
    found = limits.read_json(path, limits.MANIFEST)
    model = path.with_suffix("") / "model"
    same = found.get("request", {}).get("config") == request
    if same and found.get("complete") is True and model.is_dir():
      shutil.rmtree(folder / "model", ignore_errors=True)
      shutil.copytree(model, folder / "model")
      own = ("name", "request", "seconds", "complete")
      return {k: v for k, v in found.items() if k not in own}
  return None


def train_and_measure(
  config: TrainConfig,
  folder: pathlib.Path,
  device: jax.Device,
  advance: Advance,
) -> dict[str, Any]:
  """Trains one model on one device, from its last checkpoint if it has one.

  Returns:
    {"history": records of evaluation and probe by step; "final": of
    `measure`; "alpha": [L, H] sink scores at the end; "skipped": steps that
    were not applied; "training_seconds": of the steps alone}. The model
    stays in `folder/model`, which every launcher takes as --model.
  """
  data = prepare(
    config.corpus, vocab_size=config.text_vocab_size, held_out=config.held_out
  )
  mesh = sharding.make_mesh(sharding.MeshConfig(), [device])
  # Checkpoints serve only to go on after an interruption.
  saved = checkpoint.RunCheckpoints(folder / "checkpoints", keep=1)
  records, state = [], None
  for record, records, state in loop.run(  # noqa: B007
    config, data, saved, mesh=mesh
  ):
    advance(record["step"])
  saved.close()
  params = jax.tree.map(sharding.to_host, state.params)
  cfg = config.trained_model().replace(
    bos_id=data.tokenizer.bos_id, eos_id=data.tokenizer.eos_id
  )
  outcome = {
    "history": [
      {k: v for k, v in record.items() if k != "alpha"}
      for record in records
      if record["kind"] in ("eval", "probe")
    ],
    "alpha": [r["alpha"] for r in records if r["kind"] == "probe"][-1],
    "final": measure(params, cfg, data, config),
    "skipped": int(state.skipped),
    "training_seconds": _training_seconds(config, records),
  }
  shutil.rmtree(folder / "model", ignore_errors=True)
  data.tokenizer.add_bos = config.packing.bos != "none"
  orbax_io.save(folder / "model", params, cfg, data.tokenizer)
  # Last of all: an interruption before this line goes on from a checkpoint.
  shutil.rmtree(folder / "checkpoints")
  return outcome


def _training_seconds(
  config: TrainConfig, records: Sequence[Mapping[str, Any]]
) -> float:
  """What the steps took: in each stage, their number times the median step.

  Compilation, measurements and interruptions do not count.
  """
  tokens, total = config.batch * config.packing.length, 0.0
  for stage in config.all_stages():
    rates = [
      row["tokens_per_second"]
      for row in records
      if row["kind"] == "train" and stage.start < row["step"] <= stage.end
    ]
    # The median is not moved by the few records in which the step was compiled.
    total += stage.steps * tokens / float(np.median(rates))
  return total


def measure(
  params: Params, cfg: ModelConfig, data: Prepared, config: TrainConfig
) -> dict[str, dict[str, Any]]:
  """A trained model on held-out texts, with BOS and without.

  Args:
    params: its parameters.
    cfg: the model.
    data: whose held-out documents are read.
    config: for `probe_tokens`, `probe_texts`, and the trained length.

  Returns:
    {form: scalars}, see `forms`: `loss` in nats on texts of the trained length,
    from the second token on, without the last `ROOM`; `near_loss`, the same on
    texts of `probe_tokens`; at `probe_tokens` the probe's scalars, and those
    of `_attention`; and as `own_*` the attention on the first token and the
    sink rate at the trained length.

  Raises:
    ValueError: if no held-out document is long enough, or more than `ROOM`
      tokens stand in front.
  """
  probe, run = make_probe(cfg), jax.jit(forward(cfg))
  attention = _attention(cfg)
  near = document_starts(data, config.probe_tokens, config.probe_texts)
  own = document_starts(data, config.packing.length, config.probe_texts)
  found = {}
  for form, prefix in forms(config, data).items():
    scalars = _averaged(probe, params, prepend(near, prefix))
    far = _averaged(probe, params, prepend(own, prefix))
    found[form] = {
      "loss": _loss(run, params, own, prefix),
      "texts": len(own),
      "near_loss": _loss(run, params, near, prefix),
      **scalars,
      **_averaged(attention, params, prepend(near, prefix)),
      "uniform_mass": uniform_mass(near.shape[1]),
      "own_first_mass": far["first_mass"],
      "own_sink_rate_0.3": far["sink_rate_0.3"],
      "own_uniform_mass": uniform_mass(own.shape[1]),
    }
  return found


def _attention(cfg: ModelConfig) -> Callable:
  """`f(params, rows) -> scalars` that compare normalisers on equal terms.

  `first_weight` is the mean weight on the first token as the model has it.
  `first_share` is the same as a share of the query's row, see
  `attention_share`, and `entropy_of_shares` the entropy of these shares over
  its maximum. The probe has the sum of a row as `row_sum`.
  """
  watched = capture(
    forward(cfg),
    {
      "first_weight": ("pattern", sink_score),
      "first_share": ("pattern", lambda p: sink_score(attention_share(p))),
      "entropy_of_shares": (
        "pattern",
        lambda p: attention_entropy(attention_share(p), normalize=True),
      ),
    },
  )

  @jax.jit
  def attention(params: Params, rows: jax.Array) -> dict[str, jax.Array]:
    return {k: jnp.mean(x) for k, x in watched(params, rows).trace.items()}

  return attention


def forms(config: TrainConfig, data: Prepared) -> dict[str, list[int]]:
  """The forms in which a text is read; the first one is that of training.

  Returns:
    {form: ids in front}: "bos" where training put BOS or registers in front,
    and "text" with nothing in front.

  Raises:
    ValueError: if more than `ROOM` tokens stand in front.
  """
  front = config.packing.prefix(
    data.tokenizer.bos_id, data.tokenizer.vocab_size
  )
  if len(front) > ROOM:
    raise ValueError(f"at most {ROOM} tokens in front, got {len(front)}")
  return {**({"bos": front} if front else {}), "text": []}


def _loss(
  run: Callable, params: Params, texts: np.ndarray, prefix: list[int]
) -> float:
  """Mean loss of texts behind a prefix, from their second token on, in nats."""
  nats = targets = 0.0
  for rows in _batches(texts[:, : texts.shape[1] - ROOM]):
    # Padding makes room for the prefix; else `prepend` would cut off targets.
    rows = prepend(np.pad(rows, ((0, 0), (0, len(prefix)))), prefix)
    weights = np.ones(rows.shape, bool)
    # The first token of a text is a target only behind a prefix. It is never
    # counted, so that both forms have the same targets.
    weights[:, : 1 + len(prefix)] = False
    loss = next_token_nats(run(params, rows).logits, rows, weights)
    nats, targets = nats + float(loss.nats), targets + float(loss.targets)
  return nats / targets


def document_starts(data: Prepared, length: int, most: int) -> np.ndarray:
  """[P, length] starts of held-out documents that are long enough.

  Args:
    data: whose held-out documents.
    length: tokens of a start.
    most: P, at most; above `BATCH` a multiple of it.

  Raises:
    ValueError: if no document is long enough.
  """
  held = data.held_out
  chosen = np.flatnonzero(held.lengths >= length)[:most]
  if not chosen.size:
    raise ValueError(
      f"no held-out document has {length} tokens; set held_out or the length"
    )
  if chosen.size > BATCH:
    # A smaller last batch would compile a second program, and would weigh as
    # much as a full one in a mean over batches.
    chosen = chosen[: chosen.size // BATCH * BATCH]
  at = held.starts[chosen][:, None] + np.arange(length)
  return held.tokens[at].astype(np.int32)


def prepend(rows: np.ndarray, prefix: list[int]) -> np.ndarray:
  """[P, T] rows behind a prefix, cut at the end to their length."""
  first = np.tile(np.array(prefix, rows.dtype), (len(rows), 1))
  return np.concatenate([first, rows[:, : rows.shape[1] - len(prefix)]], axis=1)


def _batches(rows: np.ndarray) -> list[np.ndarray]:
  return [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]


def _averaged(
  probe: Callable, params: Params, rows: np.ndarray
) -> dict[str, float]:
  """The probe's scalars, means over batches of one size."""
  found = [jax.device_get(probe(params, some)) for some in _batches(rows)]
  return {
    name: float(np.mean([one[name] for one in found]))
    for name in found[0]
    if name != "alpha"
  }
