"""Prompts of many kinds: what is run and measured."""

import dataclasses
import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.sink_profile import batches
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import Mean, mean_over
from sinkjax.experiments.shared.prompt_corpus import (
  CHATS,
  SPEECHES,
  WIKIPEDIA,
  Text,
  texts_for,
)
from sinkjax.experiments.shared.text_batches import templates_of
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

Rates = Mapping[float, np.ndarray]
"""The sink rates of prompts [P] by threshold."""

Means = Mapping[str, Mapping[float, Mean]]
"""Mean sink rates by name and threshold."""


class Condition(enum.StrEnum):
  """What the prompts are; the values are keys of recorded results."""

  NATURAL = "natural"
  SPECIAL = "special token first"
  RANDOM = "random tokens"
  REPEATED = "one token repeated"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain.
    tokens: T, the prefix counted; texts with fewer are left out.
    lengths: T of the comparison by length, on texts that have the most.
    eps: thresholds; the claims are about the first.
    seed: of the choice of texts and of random tokens.
  """

  count: int = 20
  tokens: int = 64
  lengths: tuple[int, ...] = (16, 32, 64, 128)
  eps: tuple[float, ...] = (0.3, 0.5, 0.8)
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The sink rate of every prompt under every condition.

  Args:
    subject: the model.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (forward passes done, in all), passes of one prompt.

  Raises:
    ValueError: if no domain has two texts that are long enough.

  Cost: about eight forward passes a prompt.
  """
  texts = texts_for(subject, texts, config.count, config.seed)
  encoded = subject.encode([text.text for text in texts])
  kept = [i for i, ids in enumerate(encoded) if len(ids) >= config.tokens]
  texts, encoded = [texts[i] for i in kept], [encoded[i] for i in kept]
  domains = [text.domain for text in texts]
  # The interval of a domain needs two of its texts.
  if len(texts) < 2 or max(map(domains.count, set(domains))) < 2:
    raise ValueError(
      f"{len(texts)} texts have {config.tokens} tokens; two of one domain are "
      "needed"
    )
  jobs = {**_conditions(subject, config, encoded), **_lengths(config, encoded)}
  templates = templates_of(np.array(jobs[Condition.NATURAL]), subject.template)
  total, done, rates = sum(map(len, jobs.values())), 0, {}
  for name, prompts in jobs.items():

    def advance(more: int) -> None:
      nonlocal done
      done += more
      progress(done, total)

    alpha = _scores(subject, prompts, advance)
    rates[name] = {eps: (alpha > eps).mean(axis=(1, 2)) for eps in config.eps}
  result = _result(config, texts, rates)
  result.numbers["templates"] = templates
  # Only texts of the greatest length have rates by length.
  result.numbers["long_prompts"] = [
    i for i, ids in enumerate(encoded) if len(ids) >= max(config.lengths)
  ]
  return result


def _scores(
  subject: Subject,
  prompts: Sequence[Sequence[int]],
  progress: Callable[[int], Any],
) -> np.ndarray:
  """[P, L, H] sink scores, and nothing else of the forward pass."""
  f = capture(forward(subject.cfg), {"alpha": ("pattern", sink_score)})
  run = jax.jit(lambda params, tokens: f(params, tokens).trace["alpha"])
  scores: list[Any] = [None] * len(prompts)
  for batch in batches(prompts):
    tokens = jnp.asarray([prompts[i] for i in batch])
    alpha = subject.kept("batch", run, subject.params, tokens)
    for row, i in enumerate(batch):
      scores[i] = alpha[:, row]
    progress(len(batch))
  return np.stack(scores)


def _conditions(
  subject: Subject, config: Config, encoded: Sequence[list[int]]
) -> dict[Condition, list[list[int]]]:
  """The prompts of each condition, all of the same length."""
  size, rng = config.tokens, np.random.default_rng(config.seed)
  prompts = {Condition.NATURAL: [ids[:size] for ids in encoded]}
  special = subject.tokenizer.bos_id
  # With a prefix, natural text has its first token from training already.
  if special is not None and not subject.prefix:
    # One token less of the text: the sink rate depends on the length, which has
    # to be the same in all conditions.
    prompts[Condition.SPECIAL] = [
      [special, *ids[: size - 1]] for ids in encoded
    ]
  random = rng.integers(subject.cfg.vocab_size, size=(len(encoded), size))
  prompts[Condition.RANDOM] = random.tolist()
  prompts[Condition.REPEATED] = [[int(row[0])] * size for row in random]
  return prompts


def _lengths(
  config: Config, encoded: Sequence[list[int]]
) -> dict[str, list[list[int]]]:
  """The prompts that have the greatest length, cut to each length."""
  longest = max(config.lengths)
  long = [ids for ids in encoded if len(ids) >= longest]
  if len(long) < 2:
    return {}
  return {_length_name(n): [ids[:n] for ids in long] for n in config.lengths}


def _length_name(length: int) -> str:
  return f"T={length}"


def _contrasts(
  config: Config, rates: Mapping[str, Rates]
) -> dict[str, np.ndarray]:
  """By prompt: what the claims say is above zero, or within a margin of it."""
  first = {name: one[config.eps[0]] for name, one in rates.items()}
  natural = first[Condition.NATURAL]
  contrasts = {
    "random": first[Condition.RANDOM] - natural / 2,
    "repeated": natural / 2 - first[Condition.REPEATED],
  }
  short, long = (_length_name(pick(config.lengths)) for pick in (min, max))
  if short in first:
    contrasts["length"] = first[short] - first[long]
  if Condition.SPECIAL in first:
    contrasts["special"] = first[Condition.SPECIAL] - natural
  return contrasts


def _by_domain(natural: Rates, domains: Sequence[str]) -> Means:
  """The rates of every domain that has two prompts."""
  members = {
    domain: np.flatnonzero(np.array(domains) == domain)
    for domain in dict.fromkeys(domains)
  }
  return {
    domain: {e: _over_prompts(rate[which]) for e, rate in natural.items()}
    for domain, which in members.items()
    if len(which) > 1
  }


def _over_prompts(values: np.ndarray) -> Mean:
  return mean_over(values, range(len(values)))


def _result(
  config: Config, texts: Sequence[Text], rates: Mapping[str, Rates]
) -> Result:
  domains = [text.domain for text in texts]
  conditions = [name for name in Condition if name in rates]
  lengths = [
    name for name in map(_length_name, config.lengths) if name in rates
  ]
  by_domain = _by_domain(rates[Condition.NATURAL], domains)
  by_condition, by_length = (
    {
      name: {e: _over_prompts(rate) for e, rate in rates[name].items()}
      for name in names
    }
    for names in (conditions, lengths)
  )
  return Result(
    numbers={
      "prompts": len(texts),
      "tokens": config.tokens,
      "eps": config.eps,
      "seed": config.seed,
      "packages": {
        p.project: {
          "version": p.version,
          "files": p.files,
          "licence": p.licence,
        }
        for p in (WIKIPEDIA, SPEECHES, CHATS)
      },
      "by_domain": _plain(by_domain),
      "by_condition": _plain(by_condition),
      "by_length": _plain(by_length),
      **{
        name: _over_prompts(values)
        for name, values in _contrasts(config, rates).items()
      },
    },
    tables={
      "domains.csv": _table("domain", by_domain, config.eps),
      "conditions.csv": _table("condition", by_condition, config.eps),
      "lengths.csv": _table("length", by_length, config.eps),
      "prompts.csv": _prompt_table(config, texts, rates, conditions),
    },
    arrays={
      "rates": np.stack(
        [[rates[name][e] for e in config.eps] for name in conditions]
      ),
      "domain": np.array(domains),
      **(
        {
          "rates_by_length": np.stack(
            [rates[n][config.eps[0]] for n in lengths]
          )
        }
        if lengths
        else {}
      ),
    },
  )


def _length_array(
  config: Config, rates: Mapping[str, Rates], lengths: Sequence[str]
) -> dict[str, np.ndarray]:
  """The rates at the first threshold, [lengths, P], if there are any."""
  if not lengths:
    return {}
  by_length = [rates[name][config.eps[0]] for name in lengths]
  return {"rates_by_length": np.stack(by_length)}


def _plain(means: Means) -> dict[str, dict[str, Mean]]:
  """The same with thresholds as text."""
  return {
    name: {f"{e:g}": mean for e, mean in one.items()}
    for name, one in means.items()
  }


def _table(
  what: str, means: Means, eps: Sequence[float]
) -> tuple[list[str], list[list[Any]]]:
  """Rates in percent."""
  header = [what]
  for e in eps:
    header += [f"rate_{e:g}", f"low_{e:g}", f"high_{e:g}"]
  rows = [
    [name, *(100 * x for e in eps for x in one[e][:3])]
    for name, one in means.items()
  ]
  return header, rows


def _prompt_table(
  config: Config,
  texts: Sequence[Text],
  rates: Mapping[str, Rates],
  conditions: Sequence[Condition],
) -> tuple[list[str], list[list[Any]]]:
  """Where each prompt is from, and its hash: the texts are not kept."""
  header = [
    "domain",
    "origin",
    "sha256",
    *(f"{name}, {e:g}" for name in conditions for e in config.eps),
  ]
  rows = [
    [
      text.domain,
      text.origin,
      # 64 bits are enough to tell these texts apart.
      hashlib.sha256(text.text.encode()).hexdigest()[:16],
      *(float(rates[name][e][i]) for name in conditions for e in config.eps),
    ]
    for i, text in enumerate(texts)
  ]
  return header, rows
