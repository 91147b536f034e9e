"""Sink rates over prompts: groups, conditions, and where texts come from."""

import dataclasses

import numpy as np
import pytest

from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.experiments.harness.effects import Expect
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.prompts import EXPERIMENT
from sinkjax.experiments.paper.prompts.experiment import Config, measure
from sinkjax.experiments.shared import prompt_corpus
from sinkjax.experiments.shared.prompt_corpus import Text, apart

pytestmark = pytest.mark.thorough

CONFIG = Config(tokens=8, lengths=(4, 12), eps=(0.15, 0.3))


@pytest.fixture(scope="module")
def texts(subject):
  words, rng = list(subject.tokenizer.ids), np.random.default_rng(0)

  def one(domain, i, length):
    return Text(domain, f"{i}", " ".join(rng.choice(words[:20], length)))

  return [
    *(one("a", i, 14) for i in range(4)),
    *(one("b", i, 9) for i in range(3)),
    one("b", 9, 5),
    one("lonely", 0, 14),
  ]


@pytest.fixture(scope="module")
def result(subject, texts):
  return measure(subject, CONFIG, texts=texts).as_stored(CONFIG, "tiny")


def rates(subject, prompts, eps):
  alpha = sink_profile(subject.params, subject.cfg, prompts).alpha
  return (alpha > eps).mean(axis=(1, 2))


def test_rates_are_of_each_domain_s_own_prompts(subject, texts, result):
  assert result.numbers["prompts"] == 8  # one is too short
  assert set(result.numbers["by_domain"]) == {"a", "b"}
  for domain in "ab":
    ids = [
      subject.tokenizer.encode(t.text)[:8]
      for t in texts
      if t.domain == domain and len(t.text.split()) >= 8
    ]
    want = rates(subject, ids, 0.15).mean()
    got = result.numbers["by_domain"][domain]["0.15"]["value"]
    assert got == pytest.approx(want)


@pytest.mark.slow
def test_conditions(subject, texts, result):
  ids = [subject.tokenizer.encode(t.text) for t in texts]
  first = [[1, *row[:7]] for row in ids if len(row) >= 8]
  got = result.numbers["by_condition"]["special token first"]["0.3"]["value"]
  assert got == pytest.approx(rates(subject, first, 0.3).mean())
  repeated = result.arrays["rates"][3]
  assert set(result.numbers["by_condition"]) == {
    "natural",
    "special token first",
    "random tokens",
    "one token repeated",
  }
  assert repeated.shape == (2, 8)
  with_prefix = subject._replace(prefix=[1])
  again = measure(with_prefix, CONFIG, texts=texts).as_stored(CONFIG, "tiny")
  assert "special token first" not in again.numbers["by_condition"]
  last = judge(EXPERIMENT.claims(again))[-1]
  assert last.verdict == Verdict.NOT_TESTABLE


@pytest.mark.slow
def test_lengths_are_of_the_same_texts(subject, texts, result):
  long = [subject.tokenizer.encode(t.text) for t in texts]
  long = [row for row in long if len(row) >= 12]
  assert len(long) == 5
  for length in (4, 12):
    want = rates(subject, [row[:length] for row in long], 0.15)
    got = result.numbers["by_length"][f"T={length}"]["0.15"]
    assert got["value"] == pytest.approx(want.mean())
  short, whole = (
    rates(subject, [row[:n] for row in long], 0.15) for n in (4, 12)
  )
  assert result.numbers["length"]["value"] == pytest.approx(
    (short - whole).mean()
  )
  claim = EXPERIMENT.claims(result)[3]
  assert claim.id == "rate_falls_with_length" and claim.effect.n == 5
  assert claim.effect.mean.value == pytest.approx((short - whole).mean())


def test_claims_and_page(result):
  claims = EXPERIMENT.claims(result)
  assert len({claim.id for claim in claims}) == len(claims) == 5
  rates = {d: one["0.15"] for d, one in result.numbers["by_domain"].items()}
  least = min(rates, key=lambda domain: rates[domain]["value"])
  assert f"lowest {100 * rates[least]['value']:.1f} (" in claims[0].ours
  drawn = EXPERIMENT.draw(result)
  assert set(drawn) == {"domains.png", "conditions.png", "lengths.png"}
  assert len(EXPERIMENT.sections(result, drawn)) == 3


SHARES = {
  "natural": 0.8,
  "special token first": 0.8,
  "random tokens": 0.7,
  "one token repeated": 0.0,
}
"""Sink rates that support every claim."""


def planted(result, shares=SHARES, domains=(0.0, 0.0, 0.0), pages=()):
  """Claims on 24 prompts of three domains with rates near these.

  Args:
    result: whose other numbers stay.
    shares: the rate of each condition.
    domains: what each domain's natural text has more.
    pages: prompts of one template.
  """
  rng = np.random.default_rng(0)
  rates = np.array(list(shares.values()))[:, None] + np.zeros(24)
  rates = rates + 0.004 * rng.normal(size=rates.shape)
  rates[0] += np.repeat(domains, 8)
  rates[1] += np.repeat(domains, 8)
  names = np.repeat(["a", "b", "c"], 8)
  stored = {"value": 0.8, "low": 0.7, "high": 0.9, "groups": 8, "p": 0.01}
  numbers = result.numbers | {
    "by_domain": {name: {"0.15": stored} for name in "abc"},
    "by_condition": {name: {"0.15": stored} for name in shares},
    "templates": [min(pages) if i in pages else i for i in range(24)],
    "long_prompts": list(range(24)),
  }
  lengths = np.stack([rates[0] + 0.1, rates[0]])
  arrays = {
    "rates": np.stack([rates, rates], axis=1),
    "domain": names,
    "rates_by_length": lengths,
  }
  return EXPERIMENT.claims(
    dataclasses.replace(result, numbers=numbers, arrays=arrays)
  )


def test_verdicts(result):
  assert {x.verdict for x in judge(planted(result))} == {Verdict.SUPPORTED}

  def verdict(id, domains=(0.0, 0.0, 0.0), **changed):
    shares = SHARES | {k.replace("_", " "): v for k, v in changed.items()}
    made = judge(planted(result, shares, domains))
    return next(x.verdict for x in made if x.id == id)

  # One domain without sinks is enough.
  assert (
    verdict("sink_in_every_domain", domains=(0.0, -0.8, 0.0))
    == Verdict.NO_EFFECT
  )
  random = "sink_on_random_tokens"
  assert verdict(random, random_tokens=0.3) == Verdict.CONTRADICTED
  assert verdict(random, random_tokens=0.4) == Verdict.NO_EFFECT
  repeated = "no_sink_on_repeated_token"
  assert verdict(repeated, one_token_repeated=0.3) == Verdict.CONTRADICTED
  # Where natural text has no sinks either, nothing is missing.
  assert verdict(repeated, natural=0.0) == Verdict.INCONCLUSIVE
  special = "first_token_hardly_matters"
  assert verdict(special, special_token_first=0.75) == Verdict.CONTRADICTED
  assert verdict(special, special_token_first=0.85) == Verdict.CONTRADICTED


def test_prompts_of_one_template_are_one_text(result):
  pages = tuple(range(8, 16))
  domains, random, *_ = planted(result, pages=pages)
  assert random.effect.n == 17
  assert "b is one template and not tested" in domains.how
  assert "2 domains" in domains.how
  # A file without templates tells them by where they are from.
  header, rows = result.tables["prompts.csv"]
  origin = header.index("origin")
  some = [
    [*row[:origin], f"pydoc: {i}", *row[origin + 1 :]]
    for i, row in enumerate(rows[:3])
  ]
  numbers = {k: v for k, v in result.numbers.items() if k != "templates"}
  old = dataclasses.replace(
    result,
    numbers=numbers,
    tables=result.tables | {"prompts.csv": (header, [*some, *rows[3:]])},
  )
  _, random, *_ = EXPERIMENT.claims(old)
  assert random.effect.n == 6
  natural, _, tokens, _ = result.arrays["rates"][:, 0]
  above = tokens - natural / 2
  want = np.mean([above[:3].mean(), *above[3:]])
  assert random.effect.mean.value == pytest.approx(want)


def test_effects_are_of_the_first_threshold(result):
  natural, special, *_, repeated = result.arrays["rates"][:, 0]
  domains, _, no_sink, _, matters = EXPERIMENT.claims(result)
  assert matters.effect.mean.value == pytest.approx((special - natural).mean())
  assert matters.effect.expect == Expect.SAME
  assert no_sink.effect.mean.value == pytest.approx(repeated.mean())
  means = [natural[result.arrays["domain"] == x].mean() for x in "ab"]
  assert domains.effect.mean.value == pytest.approx(min(means))


def test_every_prompt_is_recorded_without_its_text(texts, result):
  header, rows = result.tables["prompts.csv"]
  assert len(rows) == 8 and header[:3] == ["domain", "origin", "sha256"]
  for row in rows:
    assert len(row[2]) == 16
    assert all(text.text not in map(str, row) for text in texts)


def test_python_s_own_texts():
  """Those that need no network: source, and pages of HTML."""
  found = prompt_corpus._python()
  code = [t for t in found if t.domain == "code"]
  pages = [t for t in found if t.domain == "HTML"]
  assert len(code) >= 35 and len(pages) >= 35
  assert sum(t.text.startswith(("def ", "class ")) for t in code) > 30
  assert all(t.text.startswith("<!DOCTYPE") for t in pages)


def test_too_few_texts(subject, texts):
  with pytest.raises(ValueError, match="two of one domain are needed"):
    measure(subject, CONFIG, texts=texts[-2:])


@pytest.mark.slow
def test_gathered_texts():
  texts = prompt_corpus.gather(20)
  domains = [text.domain for text in texts]
  assert len(set(domains)) >= 8 and len(texts) >= 170
  assert texts == prompt_corpus.gather(20)
  assert max(map(domains.count, domains)) == 20
  chat = next(text for text in texts if text.domain == "chat").text
  lines = chat.split("\n")
  assert len(lines) == prompt_corpus.TURNS
  assert {line[:3] for line in lines} == {"A: ", "B: "}
  assert len({text.origin for text in texts}) == len(texts)


def test_what_begins_alike_is_not_parted():
  rng = np.random.default_rng(0)
  ids = rng.integers(50, size=(12, 20))
  ids[3:7, :10] = ids[3, :10]
  for seed in range(20):
    one, other = apart(ids, 6, seed)
    assert len(one) <= 6 and len(one) + len(other) == 12
    sides = [any((row == x).all() for x in one) for row in ids[3:7]]
    assert len(set(sides)) == 1
    assert {tuple(x) for x in (*one, *other)} == {tuple(x) for x in ids}
