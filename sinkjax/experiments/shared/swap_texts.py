"""Twelve short texts with words to swap, written for this project.

`{a|b}` marks a place: the text has `a`, and swapping that one place gives `b`.
The first text is on the subject of the paper's example, with its swap of
"greatest" and "best".
"""

from typing import NamedTuple

SWAP_TEXTS = """\
William Shakespeare is widely regarded as the {greatest|best} writer in the
English {language|tongue} and one of the {finest|leading} dramatists of any
{age|time}. His {plays|works} have been {translated|turned} into every major
language and are {performed|shown} more often than those of any {other|single}
writer. He was {born|raised} in a small {town|village} and moved to
{London|England} as a {young|poor} man.

The {harbour|village} was {quiet|silent} before dawn. Two {men|boys} loaded
their {nets|bags} into a small {blue|green} boat and {pushed|pulled} it from
the {stones|beach}. The {water|sea} was flat and the {sky|land} had no colour
yet. By {noon|night} the wind had {turned|changed}, and they came home with
the boat half {full|empty}.

The {patient|woman} was brought in with a {high|low} fever and a {severe|mild}
pain in the {chest|back}. The {doctor|nurse} listened to her {heart|lungs} and
asked for a {blood|skin} test. The {results|reports} came after an {hour|age}
and showed a {bacterial|viral} infection. She was {given|offered} a
{strong|simple} drug and sent to bed.

The {court|judge} held that the {contract|agreement} was not {valid|binding},
since one of the {parties|sides} had not {signed|read} it. The {tenant|owner}
had paid the {rent|money} for a {year|month}, but no {written|formal} notice
was ever {sent|given}. The {appeal|claim} was therefore {dismissed|rejected}
and the costs were {shared|divided} between them.

To make the {bread|cake}, mix the {flour|sugar} with a little {salt|oil} and
add {warm|cold} water until the {dough|paste} is soft. Leave it in a
{dark|dry} place for two {hours|days}. Then heat the {oven|pan}, shape the
{dough|mixture} with wet {hands|fingers}, and bake it until the {top|crust} is
{brown|golden}.

The {star|planet} is {larger|smaller} than the Sun and lies about
{forty|fifty} light years from the {Earth|Moon}. It was {discovered|observed}
by a {team|group} of astronomers who were {looking|searching} for something
{else|new}. Its {light|surface} is {red|white} and it turns {slowly|quickly}
around a {second|distant} body that cannot be {seen|found}.

The {company|bank} said on {Monday|Friday} that its {profits|sales} had
{fallen|risen} by ten per cent in the {third|second} quarter. The
{chief|former} executive told {reporters|investors} that {prices|costs} would
go {up|down} again in the {spring|summer}. The {shares|stocks} lost a
{tenth|fifth} of their value within the {week|month}.

In the {north|south} of the country the {winters|summers} are {long|short} and
the {rivers|lakes} are deep. The {people|farmers} live in {wooden|stone}
houses and keep {sheep|cows} on the {hills|fields}. Most {young|old} people
leave for the {city|coast}, where there is {work|money}, and come back only to
be {married|buried}.

The {engine|machine} is started by turning the {key|wheel} to the
{right|left}. If the {red|green} light comes on, {stop|wait} at once and check
the {oil|fuel}. Never {open|touch} the cover while the {parts|wheels} are
{moving|hot}. Clean the {filter|pump} every {month|year} with {warm|clean}
water and a soft {cloth|brush}.

The {army|enemy} crossed the {river|border} at night and took the
{bridge|castle} without a {fight|word}. The {king|queen} had fled to the
{mountains|islands} with his {family|guards}, and the {city|capital} opened
its {gates|doors} in the {morning|evening}. The {war|siege} had lasted for
{seven|eight} years and had {cost|taken} a great many lives.

A {cell|body} takes in {sugar|oxygen} and turns it into {energy|heat}. The
{process|change} has many {steps|stages}, and each of them needs its own
{enzyme|protein}. When the {temperature|pressure} is too {high|low} these no
longer {work|fit}, and the {cell|tissue} slowly {dies|fails}. Plants can also
{store|save} what they do not {need|use}.

The {teacher|student} wrote the {answer|number} on the {board|paper} and
turned to the {class|room}. Nobody {spoke|moved}. Then a {girl|boy} in the
{last|front} row raised her {hand|voice} and asked whether the {rule|method}
would still {hold|work} for {larger|smaller} numbers. It was a {good|hard}
question, and it took the {rest|whole} of the hour.
"""


class Swap(NamedTuple):
  """One swap at one place.

  Attributes:
    text: number of the text.
    before: the text as it stands.
    after: the same with one place changed.
    words: the word that was there, and the one in its place.
  """

  text: int
  before: str
  after: str
  words: tuple[str, str]


def parse_swaps(source: str) -> list[Swap]:
  """Every swap of a single place of every text.

  Args:
    source: texts with `{a|b}`, an empty line between two; other line ends are
      spaces.

  Raises:
    ValueError: for a place without two words, or a text without a place.

  >>> parse_swaps("The {old|new} bridge {fell|stood}.")[1]
  Swap(text=0, before='The old bridge fell.', after='The old bridge stood.', \
words=('fell', 'stood'))
  """
  swaps = []
  for number, text in enumerate(source.strip().split("\n\n")):
    pieces = " ".join(text.split()).replace("}", "{").split("{")
    plain, places = pieces[::2], [p.split("|") for p in pieces[1::2]]
    if not places or any(len(p) != 2 or not all(p) for p in places):
      raise ValueError(
        f"text {number + 1} must have places like {{old|new}}: {text[:40]!r}"
      )

    swaps += [
      Swap(number, _filled(plain, places), _filled(plain, places, i), (a, b))
      for i, (a, b) in enumerate(places)
    ]
  return swaps


def _filled(
  plain: list[str], places: list[list[str]], swapped: int | None = None
) -> str:
  """The text with the second word at one place, the first at the others."""
  words = [place[i == swapped] for i, place in enumerate(places)]
  return "".join(p + w for p, w in zip(plain, [*words, ""], strict=True))
