"""The training loop: steps, and between them what is measured and saved.

A run is a function of its config: interrupted at any moment and started again
with the same workdir it goes on from the last whole checkpoint, and ends with
the same parameters, bit for bit on one machine. On another mesh, or with
another number of processes, it goes on as well; sums are then taken in another
order.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sinkjax import finite, sharding
from sinkjax.data.packing import Windows
from sinkjax.data.pipeline import Batches
from sinkjax.data.prepare import Prepared
from sinkjax.train.checkpoint import RunCheckpoints
from sinkjax.train.optimizer import learning_rate, make_optimizer
from sinkjax.train.probe import make_probe, uniform_mass
from sinkjax.train.run_config import Stage, TrainConfig
from sinkjax.train.step import TrainState, init_state, make_evaluate, make_step

BAD_STEPS = 20
"""Steps in a row that were not applied, after which a run gives up; counted on
over checkpoints, so that a repeated command does not begin to count again."""


ADVICE = "the last whole checkpoint stands. Lower optimizer.peak, or clip"


class DivergedError(ArithmeticError):
  """Too many steps in a row could not be applied, or a state is not finite."""


class _Phase:
  """A stage of the run, made ready: its step, its data, its measurements."""

  def __init__(self, config: TrainConfig, stage: Stage, data, mesh, shardings):
    self.stage, self.mesh = stage, mesh
    self.config, self.cfg = config, config.model_at(stage)
    self.batch = config.batch_at(stage)
    packing = config.packing_at(stage)
    optimizer = make_optimizer(config.optimizer, config.steps)
    separated = packing.mask == "document"
    self.step = make_step(
      self.cfg,
      optimizer,
      separated=separated,
      accumulate=config.accumulate,
      spike=config.optimizer.spike,
      details=config.details,
      shardings=shardings,
      sink=config.sink(),
      noise=config.disturbance(),
      halt=config.halt(),
    )
    ids = {
      "bos_id": data.tokenizer.bos_id,
      "eos_id": data.tokenizer.eos_id,
      "register_id": data.tokenizer.vocab_size,
    }
    sharding.batch_sharding(mesh, self.batch // config.accumulate)
    self._rows = sharding.batch_sharding(mesh, self.batch)
    number, shares = sharding.share(mesh, self.batch)
    texts = data.train
    if config.train_share < 1:  # the same ones for every seed
      texts = texts.split(config.train_share)[1]
    self.batches = Batches(
      Windows(texts, packing, **ids),
      batch=self.batch,
      seed=config.seed + stage.number,
      process=number,
      processes=shares,
    )
    self._held = Windows(data.held_out, packing, **ids)
    self._evaluate = make_evaluate(self.cfg, separated=separated)
    self._probe = make_probe(self.cfg, statistics=config.statistics)
    self._texts = probe_tokens(config, data)
    self._eval_batches: list[Any] = []

  def next_batch(self):
    return sharding.local_to_global(self._rows, next(self.batches))

  def evaluate(self, params) -> float:
    """Nats a target on held-out windows, always the same ones."""
    if not self._eval_batches:
      self._eval_batches = list(self._load_held_out())
    with jax.set_mesh(self.mesh):
      found = [self._evaluate(params, batch) for batch in self._eval_batches]
    found = [jax.tree.map(sharding.to_host, one) for one in found]
    nats = sum(float(one.nats) for one in found)
    targets = sum(float(one.targets) for one in found)
    return nats / targets

  def _load_held_out(self):
    windows, seed = self._held, self.config.seed
    count = min(self.config.eval_windows, len(windows))
    size = min(self.batch, count)
    order = np.random.default_rng(seed).permutation(len(windows))
    # All batches have one shape, so that the evaluation is compiled once.
    order = order[: count - count % size]
    where = sharding.everywhere(self.mesh)
    # Fewer windows than a batch need not divide among the devices: each then
    # holds all of them.
    if size == self.batch:
      where = self._rows
    for at in range(0, len(order), size):
      yield sharding.place(where, windows.rows(order[at : at + size]))

  def probe(self, params) -> dict[str, Any]:
    """Plain numbers, and lists of them."""
    with jax.set_mesh(self.mesh):
      found = self._probe(params, self._texts)
    found = jax.tree.map(lambda x: sharding.to_host(x).tolist(), found)
    return {**found, "uniform_mass": uniform_mass(self._texts.shape[1])}


def probe_tokens(config: TrainConfig, data: Prepared) -> np.ndarray:
  """[P, T] the starts of held-out documents, after what training put there.

  Raises:
    ValueError: if too few documents are long enough.
  """
  prefix = config.packing.prefix(
    data.tokenizer.bos_id, data.tokenizer.vocab_size
  )
  size = config.probe_tokens - len(prefix)
  held = data.held_out
  long_enough = np.flatnonzero(held.lengths >= size)[: config.probe_texts]
  if not long_enough.size:
    raise ValueError(
      f"no held-out document has {size} tokens; set probe_tokens or held_out"
    )
  at = held.starts[long_enough][:, None] + np.arange(size)
  rows = held.tokens[at].astype(np.int32)
  first = np.tile(np.array(prefix, np.int32), (len(rows), 1))
  return np.concatenate([first, rows], axis=1)


def run(
  config: TrainConfig,
  data: Prepared,
  checkpoints: RunCheckpoints,
  *,
  mesh: Mesh | None = None,
  start: Any | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], TrainState]]:
  """Trains, and yields (record, all records so far, state) as it goes.

  A record has `kind` "resume", "train", "eval", "probe", "saved" or "stopped",
  and `step`. The state of a "train" record has steps in flight: read its
  numbers from the record. Every process of a run must iterate.

  Args:
    config: the run.
    data: what it trains on.
    checkpoints: where it goes on from, and saves.
    mesh: of `sharding.make_mesh`; all devices along `data` if `None`.
    start: parameters before step 0; random ones if `None`.
    stop: asked after every step; True saves and ends. Several processes agree
      when they next log.

  Raises:
    StateError: for a checkpoint of other data.
    ValueError: for a mesh that does not divide the model or the batch.
    WeightsError: for a checkpoint of another model.
    DivergedError: after `BAD_STEPS` steps in a row that were not applied, or
      where parameters, a held-out loss or a probe are not finite.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig()) if mesh is None else mesh
  optimizer = make_optimizer(config.optimizer, config.steps)
  rate = learning_rate(config.optimizer, config.steps)
  records: list[dict[str, Any]] = []

  def fresh(params=None):
    key = jax.random.key(config.seed)
    return init_state(config.model, optimizer, key, params=params)

  shapes = jax.eval_shape(fresh)
  shardings = sharding.state_shardings(mesh, shapes)
  found = checkpoints.restore(sharding.placed(shapes, shardings))
  if found is not None:
    _, state, about = found
    records = about["records"]
    yield {"kind": "resume", "step": int(state.step)}, records, state
  else:
    about, params = {"stage": None}, ()
    if start is not None:
      params = (sharding.place(shardings.params, start),)
    state = jax.jit(fresh, out_shardings=shardings)(*params)

  def record(kind, step, **values):
    records.append({"kind": kind, "step": step, **values})
    return records[-1], records, state

  def measure(phase, step):
    """Evaluation and probe, where they are due."""
    always = step == config.steps or step in config.probe_steps
    length = {"length": phase.stage.length}
    if step % config.eval_every == 0 or always:
      loss = phase.evaluate(state.params)
      _require("the held-out loss", loss, step)
      yield record("eval", step, loss=loss, **length)
    if step % config.probe_every == 0 or always:
      probed = phase.probe(state.params)
      for name, value in probed.items():
        _require(f"the probe's {name}", value, step)
      yield record("probe", step, **probed, **length)

  largest_of = jax.jit(lambda params: optax.tree.norm(params, ord=jnp.inf))
  bad, done = about.get("bad", 0), int(state.step)
  for stage in config.all_stages():
    if done >= stage.end:
      continue
    phase = _Phase(config, stage, data, mesh, shardings)
    if about["stage"] == stage.number:
      phase.batches.restore(about["data"])
    if not records:
      yield from measure(phase, 0)
    pending, waited, since = [], 0.0, time.perf_counter()
    for step in range(done + 1, stage.end + 1):
      asked = time.perf_counter()
      batch = phase.next_batch()
      waited += time.perf_counter() - asked
      state, metrics = phase.step(state, batch)
      pending.append(metrics)
      every = (config.log_every, config.eval_every, config.probe_every)
      logs = any(step % n == 0 for n in every) or step in config.probe_steps
      # To agree, processes wait for each other: they do so only when they log.
      halt = stop() if jax.process_count() == 1 else logs and _agreed(stop())
      saves = step % config.save_every == 0 or step == stage.end or halt
      if logs or saves:
        # A fetch waits for the devices, so there is none between two records:
        # the host queues the steps ahead.
        values = jax.device_get(pending)
        for one in values:
          bad = 0 if one.applied else bad + 1
          if bad >= BAD_STEPS:
            raise DivergedError(
              f"{bad} steps up to {step} had no finite gradient, or losses "
              f"beyond optimizer.spike; {ADVICE}"
            )
        took = time.perf_counter() - since
        tokens = len(values) * phase.batch * stage.length
        yield record(
          "train",
          step,
          **_averages(values),
          learning_rate=float(rate(step)),
          skipped=int(state.skipped),
          tokens_per_second=tokens / took,
          waited=waited / took,
          length=stage.length,
        )
        pending, waited, since = [], 0.0, time.perf_counter()
      yield from measure(phase, step)
      if saves:
        with jax.set_mesh(mesh):
          largest = sharding.to_host(largest_of(state.params))
        _require("the largest parameter", largest, step)
        losses = [r["loss"] for r in records if r["kind"] == "eval"]
        about = {
          "data": phase.batches.state(),
          "stage": stage.number,
          "records": records,
          "bad": bad,
        }
        loss = losses[-1] if losses else None
        checkpoints.save(step, state, about, loss=loss)
        ended = halt and step < config.steps
        kind = "stopped" if ended else "saved"
        yield {"kind": kind, "step": step}, records, state
        if ended:
          checkpoints.wait()
          return
      if logs or saves:  # measuring and saving are not training
        since = time.perf_counter()
    done = stage.end
  checkpoints.wait()


def _require(what: str, value: Any, step: int) -> None:
  if (at := finite.where(value)) is not None:
    raise DivergedError(
      f"{what} is {np.asarray(value)[at]} at step {step}; {ADVICE}"
    )


def _averages(values) -> dict[str, Any]:
  """What the steps since the last record come to."""
  good = [one for one in values if one.applied]
  targets = sum(float(one.targets) for one in good)
  # Steps weigh by their targets: packing gives batches different numbers of
  # them.
  nats = sum(float(one.loss) * float(one.targets) for one in good)
  told = {
    name: float(np.mean([one.details[name] for one in values]))
    for name in values[-1].details
  }
  if told.get("signal", 0) > 0:
    told["noise_scale"] = told["noise"] / told["signal"]
  return {
    "loss": nats / targets if good else None,
    "grad_norm": float(values[-1].grad_norm),
    **told,
  }


def _agreed(flag: bool) -> bool:
  """Whether any process says so."""
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.array([flag])).any())
