"""A chat template and a tiny model that has it, for tests of experiments."""

import jax
from variants import scaled

import sinkjax
from sinkjax.data.corpus import train_tokenizer
from sinkjax.experiments.harness import runner
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS

TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}"
  "</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>"
  "{% endif %}"
)


def subject():
  """A tiny model whose tokenizer has the template, with BOS as prefix."""
  tokenizer = train_tokenizer([SWAP_TEXTS], 400)
  tokenizer.chat_template = TEMPLATE
  cfg = sinkjax.TINY.replace(vocab_size=400, max_len=512, n_layers=2)
  params = scaled(sinkjax.init_params(cfg, jax.random.key(0)), 1.5)
  return Subject("tiny", params, cfg, tokenizer, [tokenizer.bos_id])


class Made(runner.Request):
  """A request whose model has no file, which the record would name."""

  def models(self):
    return []
