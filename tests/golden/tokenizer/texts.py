"""The texts of the tokenizer tests: hard cases by seeded recipes."""

import pathlib
import random

from vocabularies import GEMMA, USER

HERE = pathlib.Path(__file__).parent
CONTROL = [
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<repo_name>",
  "<s>",
  "</s>",
  "<unk>",
  "<pad>",
  "<bos>",
  "<eos>",
  "[INST]",
]


def strings() -> list[str]:
  """The texts: the recipe is seeded, and deduplicated in order."""
  rng = random.Random(20240229)
  samples = (HERE / "samples.txt").read_text("utf-8").splitlines()
  found = ["", " ", "\n", "a", "é", "日", "🙂", "\0", "\t", "\r\n", "▁", "'s"]
  found += samples
  for recipe in (
    _whitespace,
    _digits,
    _prose,
    _code,
    _mixtures,
    _special,
    _emoji,
    _random_unicode,
    _repeats,
    _contractions,
    _control,
    _long_words,
  ):
    found += recipe(rng, samples)
  return list(dict.fromkeys(found))


def _whitespace(rng, samples):
  spaces = [
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\r",
    "\v",
    "\f",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u0085",
    "\u2028",
  ]
  words = " ".join(samples).split()
  found = [" " * n for n in range(2, 40, 3)]
  found += ["\n" * n + "x" for n in range(1, 9)]
  for _ in range(200):
    parts = rng.choices(words, k=rng.randint(1, 5))
    parts = [
      p + "".join(rng.choices(spaces, k=rng.randint(1, 3))) for p in parts
    ]
    found.append("".join(parts))
  return found


def _digits(rng, samples):
  patterns = ["{}", " {}", "x{}", "{}px", "{}.{}", "${},{}", "-{}", "{}:{} "]
  found = []
  for _ in range(120):
    number = str(rng.randrange(10 ** rng.randint(1, 12)))
    pattern = rng.choice(patterns)
    found.append(pattern.format(number, rng.randrange(1000)))
  return found


def _prose(rng, samples):
  english = [
    "the {} of a {} was {}er than we'd hoped, and nobody {}ed",
    "She {}s every {}; he doesn't.",
    "Why would {} {} matter to the {}?",
    '"It isn\'t {}," they said, "but {} is."',
    "Layer {} attends to {}, however {}.",
  ]
  french = [
    "l'{} du {} n'était pas {}, et personne ne l'{}ait su",
    "Elle {}e chaque {} ; lui, jamais.",
    "Pourquoi {} {} serait-il {} ?",
    "« Ce n'est pas {} », dit-on, « c'est {}. »",
    "La couche {} regarde {}, même {}.",
  ]
  words = [word for line in samples[:8] for word in line.split()]
  found = []
  for _ in range(140):
    for templates in (english, french):
      template = rng.choice(templates)
      found.append(template.format(*rng.choices(words, k=4)))
  return found


def _code(rng, samples):
  names = ["x", "user_id", "getValue", "HTTPServer", "tmp2", "αβ", "été", "_"]
  values = [
    "0x7fff",
    "1e-7",
    "'don\\'t'",
    '"a\\n\\tb"',
    "None",
    "[1, 2,3]",
    "f'{x:>8.3f}'",
    "null",
    "3.14f",
    "-1",
    "{...}",
  ]
  templates = [
    "def {n}(self, {m}: int = {v}) -> {n}:\n    return {m}[{v}:]\n",
    "    if {n} != {v} and not {m}:\n\t\traise ValueError({v})  # {m}",
    "for (int {n} = {v}; {n} < {m}; ++{n}) {{\r\n  {m}[{n}] <<= 2;\r\n}}",
    '"""{n}: {m}.\n\n  >>> {n}({v})\n  {v}\n  """',
    "const {n} = async ({m}) => `${{{m}}}` ?? {v}; // {n}",
    "SELECT {n}, COUNT({m}) FROM t WHERE {n} >= {v} AND {m} LIKE '%a_';",
    '{{"{n}": {v}, "{m}": [true, {v}]}}',
    "<a href='/{n}?{m}={v}&b=2#top'>&nbsp;{n}</a>\n\n</div>",
    "$ {n} --{m}={v} | grep -v '^#' >> ~/{n}.log 2>&1",
    "{n}();\n// {m}!\n\n/* {v} */\r\n//{n}.\n/",
    "        \n\n\n    {n}\t= {v}\t;\t/* {m} */   \n",
    "template<class {n}> auto {m}::operator->() -> decltype({v})&&;",
    "\\frac{{{n}_{{t+1}}}}{{{m}^2}} \\leq \\sqrt{{{v}}}",
  ]
  found = []
  for _ in range(330):
    text = rng.choice(templates).format(
      n=rng.choice(names), m=rng.choice(names), v=rng.choice(values)
    )
    start = rng.choice([0, 0, rng.randrange(12)])
    found.append(text[start : rng.choice([len(text), rng.randint(15, 50)])])
  return found


def _mixtures(rng, samples):
  found = []
  for _ in range(650):
    parts = []
    for _ in range(rng.randint(1, 3)):
      line = rng.choice(samples)
      start = rng.randrange(len(line))
      parts.append(line[start : start + rng.randint(1, 24)])
    found.append(rng.choice(["", " ", "\n", "'s "]).join(parts))
  return found


def _special(rng, samples):
  found = list(CONTROL) + USER + GEMMA
  found += [
    " <|im_start|> ",
    "<|im_start|><|im_end|>",
    "<|im_start",
    "<|<s>|>",
    "<|im_start|>user\nHi<|im_end|>\n",
    "x<|tool|>y",
    "<s> hello</s>",
    "<s>  a",
    "\n\n\n\n<s>",
    "<|IM_START|>",
    "< s>",
    "<td><b>x</b>",
    "<|tool|><|tool|>",
    "<|tool|> <|tool|>",
    "<s><s>a<s> b",
  ]
  words = " ".join(samples).split()
  tokens = [*CONTROL, *USER, "<|tool|>", "   ", "<b>", "[@BOS@]"]
  for _ in range(300):
    parts = rng.choices(words, k=rng.randint(1, 4))
    parts += rng.choices(tokens, k=rng.randint(1, 3))
    rng.shuffle(parts)
    found.append(rng.choice(["", " "]).join(parts))
  return found


def _emoji(rng, samples):
  people = ["👩", "👨", "🧑", "👍", "🤷", "🏃"]
  tones = ["", *map(chr, range(0x1F3FB, 0x1F400))]
  ends = ["", "\u200d💻", "\u200d♀\ufe0f", "\u200d🚀", "\ufe0f", "\u200d"]
  found = []
  for _ in range(90):
    parts = [
      rng.choice(people) + rng.choice(tones) + rng.choice(ends)
      for _ in range(rng.randint(1, 3))
    ]
    parts += ["".join(chr(0x1F1E6 + rng.randrange(26)) for _ in "ab")]
    parts += [rng.choice(["1\ufe0f\u20e3", "❤\ufe0f\u200d🔥", "ok", "☃\ufe0e"])]
    rng.shuffle(parts)
    found.append(rng.choice(["", " "]).join(parts))
  return found


def _random_unicode(rng, samples):
  blocks = [
    (0x20, 0x7F),
    (0xA0, 0x17F),
    (0x300, 0x36F),
    (0x370, 0x4FF),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0x1E00, 0x1FFF),
    (0x2000, 0x2BFF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F6FF),
    (0x1, 0x1F),
    (0x980, 0x1000),
    (0xE000, 0xE010),
    (0x1D400, 0x1D7FF),
    (0x10000, 0x10FFF),
    (0xFE00, 0xFFFF),
  ]
  found = []
  for _ in range(300):
    low, high = rng.choice(blocks)
    chars = [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 9))]
    chars += rng.choices("a1 .'\n", k=rng.randint(0, 4))
    rng.shuffle(chars)
    found.append("".join(chars))
  return found


def _repeats(rng, samples):
  """Few letters, many ties."""
  found = []
  for _ in range(300):
    letters = rng.choice(
      ["ab", "aab ", "01", " ▁", "the ", "is ", "' s", "\n "]
    )
    found.append("".join(rng.choices(letters, k=rng.randint(2, 22))))
  return found


def _contractions(rng, samples):
  words = [
    "we",
    "I",
    "DON",
    "ça",
    "l",
    "qu",
    "é",
    "9",
    "",
    " ",
    "_",
    "\n",
    "日",
  ]
  ends = ["s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "Ve", "rE", "ſ", "x"]
  found = []
  for _ in range(120):
    mark = rng.choice("''''’`")
    parts = [rng.choice(words), mark, rng.choice(ends), rng.choice(words)]
    found.append("".join(parts) + rng.choice(["", " ", "'", "s", "'t"]))
  return found


def _control(rng, samples):
  chars = [
    *map(chr, range(32)),
    "\x7f",
    "\x80",
    "\x9f",
    "\ufeff",
    "\u202e",
    "\u200b",
    "\u2060",
    "\ufffd",
    "\U0010ffff",
    "\ue000",
  ]
  found = []
  for _ in range(80):
    parts = rng.choices(chars, k=rng.randint(1, 4)) + ["a", " b"]
    rng.shuffle(parts)
    found.append("".join(parts))
  return found


def _long_words(rng, samples):
  found = []
  for letters in (
    "a",
    "ab",
    "abcdefghij",
    "日本語",
    "é",
    "0123456789",
    "-=",
    " ",
    "\n",
    "👩🏽",
    "aA",
    "x1",
    "ั",
  ):
    for length in (50, 300):
      found.append("".join(rng.choices(letters, k=length)))
  return found
