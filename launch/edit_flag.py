"""--edit, as every launcher has it that runs a model.

`given` reads it, `check` compares it with a config and a text, and `of_model`
puts it into a model, which then runs edited whatever is done with it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from sinkjax.config import ModelConfig

NONE = "none"

EDIT = flags.DEFINE_string(
  "edit",
  NONE,
  "Edits of the model, in order, with ; between them; each is the Python edit "
  "of that name. "
  "'knockout key=0 from=8': token 0 is hidden from all others from layer 8 on. "
  "'scale head=3.2 by=0': what head 2 of layer 3 gives, times a number; "
  "head=2 is that of every layer; 'scale site=mlp_out layers=3:6 by=0.5' "
  "scales any site in layers 3, 4 and 5. "
  "'graded key=0 by=2': attention on a token times 2, and normalised; 0 hides "
  "it; also with layers= and head=. "
  "'ablate neurons=11:507,11:9 to=mean': neurons of the MLP become zero, a "
  "number, one number each, or their mean over all tokens of the given texts, "
  "found without edits; 'ablate head=3.2 to=zero' or to=mean does so to heads. "
  "'hold site=pattern': the value stays and its derivative is lost. "
  "Layers, heads, neurons and tokens count from 0.",
)


def given() -> tuple[Any, ...]:
  """The edits of the flag.

  Raises:
    ValueError: for a text that is none, saying what is valid.
  """
  if EDIT.value == NONE:
    return ()
  from sinkjax.transforms.edit_grammar import parse_edits

  return parse_edits(EDIT.value)


def text(edits: Sequence[Any]) -> str:
  """The edits in words, the same however they were written; "none"."""
  if not edits:
    return NONE
  from sinkjax.transforms.edit_grammar import written

  return written(edits)


def record(edits: Sequence[Any]) -> dict[str, str]:
  """What a request and a record hold of the edits; nothing without."""
  return {"edit": text(edits)} if edits else {}


def check(
  edits: Sequence[Any], cfg: "ModelConfig", tokens: int | None = None
) -> None:
  """Refuses edits that a model or its texts have no place for.

  Args:
    edits: of `given`.
    cfg: the model's config.
    tokens: of the shortest text, `None` where texts are not known.

  Raises:
    ValueError: naming the edit.
  """
  if edits:
    from sinkjax.transforms import edit_grammar

    edit_grammar.check(edits, cfg, tokens)


def plan(edits: Sequence[Any]) -> str:
  """A line of a dry run, empty without edits."""
  return f"edit      {text(edits)}\n" if edits else ""


def resolved(
  edits: Sequence[Any],
  params: Any,
  cfg: "ModelConfig",
  prompts: Sequence[Sequence[int]],
) -> tuple[tuple[Any, ...], dict[str, str]]:
  """The edits with their means, and what a record says of them.

  Args:
    edits: of `given`.
    params: the model's parameters, or weights read layer by layer.
    cfg: its config, without edits.
    prompts: token ids of the texts over which means are.
  """
  if not edits:
    return (), {}
  from sinkjax.analysis.edit_means import with_means

  some, about = with_means(params, cfg, edits, prompts), record(edits)
  # Of neurons, whose means are a number each: the same edit for other texts.
  if text(some) != about["edit"]:
    about["edit_with_means"] = text(some)
  return some, about


def of_model(
  edits: Sequence[Any],
  params: Any,
  cfg: "ModelConfig",
  prompts: Sequence[Sequence[int]],
) -> tuple["ModelConfig", dict[str, str]]:
  """The config of the edited model; arguments and record as `resolved`."""
  some, about = resolved(edits, params, cfg, prompts)
  if not some:
    return cfg, about
  from sinkjax.transforms.edited_model import edited

  return edited(cfg, some), about
