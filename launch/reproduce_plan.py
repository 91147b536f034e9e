"""What is known of the model that `launch.reproduce` would measure, and what
experiments on it need of devices that are elsewhere."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch import accelerator_plan, devices, edit_flag, given_texts
from launch.accelerator_flag import ACCELERATOR
from sinkjax.experiments.shared.watched import BATCH

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig

LENGTHS = ("tokens", "lengths", "length")
"""Last words of the fields of a config that count the tokens of a text."""

WHOLE = {"streaming": "dense"}
"""Experiments whose text is longer than a pass, and the field that counts the
tokens of their longest one."""


SHORT = 64
"""Tokens of a text that an experiment does not cut."""


def show_model(
  model: str, prefix: str, configs: Mapping[str, Any], *, by_name: bool
) -> list[str]:
  """Prints what is known of the model; gives the experiments that measure it.

  Args:
    model: its name or path.
    prefix: of --prefix.
    configs: of the experiments, by name.
    by_name: as for `fitting`.

  Raises:
    ValueError: as `show`, or where a flag does not go with the model.
  """
  from launch import prompts
  from launch.fitting import fitting
  from sinkjax.weights import registry
  from sinkjax.weights.chat import messages_of

  print(f"model        {model}")
  found = registry.peek(model)
  if found is None:
    print(f"             {registry.would_fetch(model)}")
    return list(configs)
  cfg, tokenizer, parameters = found
  size = f"             {cfg.n_layers} layers, {parameters:,} parameters"
  if ACCELERATOR.value:  # a config alone is enough
    print(size)
    names = fitting(list(configs), model, lambda: cfg, by_name=by_name)
    show(cfg, {name: configs[name] for name in names})
    return names
  prompts.need_tokenizer(tokenizer, model)
  edits = edit_flag.given()
  edit_flag.check(edits, cfg, cfg.max_len)
  _, why = prompts.resolve_prefix(prefix, tokenizer)
  chat, texts = given_texts.of_tokenizer(tokenizer, configs)
  if chat is not None:
    system = prompts.system_of(messages_of("", chat.system), tokenizer)
    about = prompts.Encoded([], "", chat.before, *system).plan(13)
    why = f"chat template, {len(chat.ids)} tokens\n{about}".rstrip()
  if texts is not None:
    print(f"texts        {len(texts):,} of --prompts_file")
  weights, where = devices.planned(cfg)
  print(
    f"{size}, {weights / 1e9:.2f} GB of weights on {where}\nprefix       {why}"
  )
  if edits:
    print(f"edit         {edit_flag.text(edits)}")
  return fitting(list(configs), model, lambda: cfg, by_name=by_name)


def show(cfg: "ModelConfig", configs: Mapping[str, Any]) -> None:
  """Prints the plan of the largest pass of each experiment, the largest whole.

  Args:
    cfg: the model's.
    configs: of the experiments that measure it, by name.

  Raises:
    ValueError: as `accelerator_plan.make`.
  """
  plans = {
    name: accelerator_plan.make(
      cfg,
      ACCELERATOR.value,
      devices.MESH.value,
      devices.DTYPE.value,
      getattr(config, "batch", BATCH),
      longest(cfg, name, config),
    )
    for name, config in configs.items()
  }
  for name, plan in plans.items():
    fits = "fits" if plan.fits else "too much"
    print(
      f"pass         {name}: {plan.rows} x {plan.length} tokens, about "
      f"{plan.estimate.memory / 1e9:.2f} GB a device, {fits}"
    )
  name = max(plans, key=lambda x: plans[x].estimate.memory)
  print(
    f"estimated    the largest, of {name}: one pass forward with every metric "
    "of the report; derivatives, edits and the number of passes come on top"
  )
  accelerator_plan.show(plans[name])


def longest(cfg: "ModelConfig", name: str, config: Any) -> int:
  """Tokens of the longest pass of an experiment, at most the model's context.

  >>> import sinkjax
  >>> from sinkjax.experiments import BY_NAME
  >>> cfg = sinkjax.TINY.replace(max_len=10_000)
  >>> find = lambda name: longest(cfg, name, BY_NAME[name].load().config())
  >>> find("prompts"), find("first_token"), find("streaming")
  (128, 8192, 10000)
  """
  field = WHOLE.get(name)
  words = vars(config) if field is None else {field: vars(config)[field]}
  found = []
  for key, value in words.items():
    if key == field or key.rpartition("_")[2] in LENGTHS:
      found += value if isinstance(value, tuple) else [value]
  # One without such a field takes texts as they are, of a sentence or two.
  return min(max([SHORT, *found]), cfg.max_len)
