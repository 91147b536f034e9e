"""Architectures that are no decoder with attention, by their `model_type`.

The name of a family that is merely not read is an "unknown model_type"; these
are refused with what they are, since no file of them ever could be read.
"""

_KINDS = {
  "a state-space model, whose layers have no attention": (
    "falcon_mamba mamba mamba2 rwkv xlstm"
  ),
  "a hybrid of attention with state-space or linear layers": (
    "bamba falcon_h1 granitemoehybrid jamba kimi_linear lfm2 lfm2_moe "
    "minimax nemotron_h qwen3_5 qwen3_5_moe qwen3_next recurrent_gemma zamba "
    "zamba2"
  ),
  "an encoder, whose attention is not causal": (
    "albert bert camembert deberta deberta-v2 distilbert electra ernie "
    "esm modernbert mpnet nomic_bert roberta xlm-roberta"
  ),
  "an encoder with a decoder": (
    "bart blenderbot led longt5 m2m_100 marian mbart mt5 pegasus "
    "switch_transformers t5 t5gemma umt5 whisper"
  ),
  "a vision or audio model": (
    "beit clip convnext deit dinov2 dinov3_vit hubert siglip swin vit wav2vec2"
  ),
}
KINDS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
"""{model_type: what it is}."""


def reason(model_type: object) -> str | None:
  """Why a model of that type cannot be read, `None` where it is not listed.

  >>> reason("mamba")
  'a state-space model, whose layers have no attention'
  """
  return KINDS.get(model_type) if isinstance(model_type, str) else None
