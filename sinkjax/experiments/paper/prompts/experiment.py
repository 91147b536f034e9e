"""The sink rate over many prompts of many domains (section 2, appendix C.3).

Also by threshold and length, with a special token first, on random tokens and
on one token repeated, as in Gu et al. (2025, arXiv 2410.10781), table 2.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.sink_profile import batches
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  Result,
  Subject,
  direction,
)
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.prompt_corpus import (
  CHATS,
  SPEECHES,
  WIKIPEDIA,
  Text,
  gather,
)
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

NAME, TITLE = "prompts", "Sinks over many prompts"


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


def run(
  subject: Subject,
  config: Config,
  *,
  texts: list[Text] | None = None,
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
  texts = gather(config.count, config.seed) if texts is None else texts
  encoded = [
    subject.prefix + subject.tokenizer.encode(text.text) for text in texts
  ]
  kept = [i for i, ids in enumerate(encoded) if len(ids) >= config.tokens]
  texts, encoded = [texts[i] for i in kept], [encoded[i] for i in kept]
  domains = [text.domain for text in texts]
  if len(texts) < 2 or max(map(domains.count, set(domains))) < 2:
    raise ValueError(
      f"{len(texts)} texts have {config.tokens} tokens; two of one domain are "
      "needed"
    )
  conditions = _conditions(subject, config, encoded)
  longest = max(config.lengths)
  long = [ids for ids in encoded if len(ids) >= longest]
  jobs = dict(conditions)
  for length in config.lengths if len(long) > 1 else ():
    jobs[f"T={length}"] = [ids[:length] for ids in long]
  total, done, rates = sum(map(len, jobs.values())), 0, {}
  for name, prompts in jobs.items():

    def advance(more):
      nonlocal done
      done += more
      progress(done, total)

    alpha = _scores(subject, prompts, advance)
    rates[name] = {eps: (alpha > eps).mean(axis=(1, 2)) for eps in config.eps}
  return _result(subject, config, texts, encoded, conditions, rates)


def _scores(subject: Subject, prompts, progress) -> np.ndarray:
  """[P, L, H] sink scores, and nothing else of the forward pass."""
  f = capture(forward(subject.cfg), {"alpha": ("pattern", sink_score)})
  run = jax.jit(lambda params, tokens: f(params, tokens).trace["alpha"])
  found: list[Any] = [None] * len(prompts)
  for batch in batches(prompts):
    alpha = run(subject.params, jnp.asarray([prompts[i] for i in batch]))
    for row, i in enumerate(batch):
      found[i] = np.asarray(alpha[:, row])
    progress(len(batch))
  return np.stack(found)


def _conditions(subject: Subject, config: Config, encoded):
  """{name: prompts}, all of the same length."""
  size, rng = config.tokens, np.random.default_rng(config.seed)
  vocabulary = subject.cfg.vocab_size
  found = {"natural": [ids[:size] for ids in encoded]}
  special = subject.tokenizer.bos_id
  if special is not None and not subject.prefix:
    found["special token first"] = [
      [special, *ids[: size - 1]] for ids in encoded
    ]
  random = rng.integers(vocabulary, size=(len(encoded), size))
  found["random tokens"] = random.tolist()
  found["one token repeated"] = [[int(row[0])] * size for row in random]
  return found


def _percent(mean, form: str = ".1f") -> str:
  scaled = mean._replace(
    value=100 * mean.value, low=100 * mean.low, high=100 * mean.high
  )
  return scaled.text(form, " %")


def _result(subject, config, texts, encoded, conditions, rates) -> Result:
  domains = [text.domain for text in texts]
  prompts = list(range(len(texts)))
  eps = config.eps[0]
  by_domain = {
    domain: {
      e: mean_over(
        [
          r
          for r, d in zip(rates["natural"][e], domains, strict=True)
          if d == domain
        ],
        range(domains.count(domain)),
      )
      for e in config.eps
    }
    for domain in dict.fromkeys(domains)
    if domains.count(domain) > 1
  }
  by_condition = {
    name: {e: mean_over(rates[name][e], prompts) for e in config.eps}
    for name in conditions
  }
  lengths = {
    name: {e: mean_over(one[e], range(len(one[e]))) for e in config.eps}
    for name, one in rates.items()
    if name.startswith("T=")
  }
  natural = rates["natural"][eps]
  means = {
    "random": mean_over(rates["random tokens"][eps] - natural / 2, prompts),
    "repeated": mean_over(
      natural / 2 - rates["one token repeated"][eps], prompts
    ),
  }
  if lengths:
    short, long = (
      rates[f"T={pick(config.lengths)}"][eps] for pick in (min, max)
    )
    means["length"] = mean_over(short - long, range(len(short)))
  if "special token first" in rates:
    special = rates["special token first"][eps]
    means["special"] = mean_over(special - natural, prompts)
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(
      config, by_domain, by_condition, lengths, means, len(prompts)
    ),
    numbers={
      "prompts": len(prompts),
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
      "by_length": _plain(lengths),
      **{name: mean._asdict() for name, mean in means.items()},
    },
    tables={
      "domains.csv": _table("domain", by_domain, config.eps),
      "conditions.csv": _table("condition", by_condition, config.eps),
      "lengths.csv": _table("length", lengths, config.eps),
      "prompts.csv": _prompt_table(config, texts, rates, conditions),
    },
    arrays={
      "rates": np.stack(
        [[rates[name][e] for e in config.eps] for name in conditions]
      ),
      "domain": np.array(domains),
    },
  )


def _plain(means):
  return {
    name: {f"{e:g}": mean._asdict() for e, mean in one.items()}
    for name, one in means.items()
  }


def _table(what, means, eps):
  header = [what]
  for e in eps:
    header += [f"rate_{e:g}", f"low_{e:g}", f"high_{e:g}"]
  rows = [
    [name, *(100 * x for e in eps for x in one[e][:3])]
    for name, one in means.items()
  ]
  return header, rows


def _prompt_table(config, texts, rates, conditions):
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
      hashlib.sha256(text.text.encode()).hexdigest()[:16],
      *(float(rates[name][e][i]) for name in conditions for e in config.eps),
    ]
    for i, text in enumerate(texts)
  ]
  return header, rows


def _claims(config, by_domain, by_condition, lengths, means, prompts):
  eps, where = config.eps[0], "2410.10781, table 2"
  least = min(by_domain, key=lambda d: by_domain[d][eps].value)
  most = max(by_domain, key=lambda d: by_domain[d][eps].value)
  natural = by_condition["natural"][eps]
  size = f"{prompts} prompts of {config.tokens} tokens, eps {eps:g}"
  claims = [
    Claim(
      "The first token is a sink on natural text of every domain.",
      where,
      "92.47 % (Llama 2 7B), 99.02 (Llama 3 8B), 77.00 (GPT-2 XL)",
      f"{_percent(natural)}; least {_percent(by_domain[least][eps])} on "
      f"{least}, most {_percent(by_domain[most][eps])} on {most}",
      AGREES if by_domain[least][eps].low > 0 else DISAGREES,
      f"{size}, {len(by_domain)} domains; agrees if no domain's interval "
      "holds 0",
    ),
    Claim(
      "It is a sink on random tokens too.",
      where,
      "90.13 % (Llama 2 7B), 91.23 (Llama 3 8B), 70.29 (GPT-2 XL)",
      _percent(by_condition["random tokens"][eps]),
      direction(means["random"].low, means["random"].high),
      f"{size}; agrees above half of the natural rate",
    ),
    Claim(
      "With rotary positions one token repeated has no sink.",
      where,
      "0 % (Llama 2 7B, Llama 3 8B, Mistral 7B); GPT-2 XL 62.28",
      _percent(by_condition["one token repeated"][eps]),
      direction(means["repeated"].low, means["repeated"].high),
      f"{size}; agrees below half of the natural rate",
    ),
  ]
  if lengths:
    said = ", ".join(
      f"{_percent(one[eps])} at {n}" for n, one in lengths.items()
    )
    claims.append(
      Claim(
        "The rate falls as the measured text grows.",
        "2410.10781, section 4.1",
        "no number",
        said,
        direction(means["length"].low, means["length"].high),
        "the same texts at every length, paired",
      )
    )
  special = means.get("special")
  claims.append(
    Claim(
      "Which token is first matters little, where training did not fix it.",
      "section 5, table 2",
      "65.10 % with BOS, 65.15 without (120M)",
      "not measured"
      if special is None
      else f"{_percent(by_condition['special token first'][eps])} with the special "
      f"token first, a change of {_percent(special, '+.1f')}",
      UNTESTED
      if special is None
      else AGREES
      if max(abs(special.low), abs(special.high)) < 0.1
      else DISAGREES,
      "no special token, or one is put first anyway"
      if special is None
      else "agrees if the change is within 10 points",
    )
  )
  return claims
