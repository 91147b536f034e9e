"""Metadata of the golden models' GGUF files, by the keys of llama.cpp."""

import gguf

# Whose width of an expert has a key of its own.
_EXPERT_LENGTH = ("qwen2moe", "qwen3moe", "gpt-oss")


def write_metadata(writer, cfg):
  """Every key that an architecture may have of this config."""
  writer.add_context_length(cfg.max_len)
  writer.add_embedding_length(cfg.d_model)
  writer.add_block_count(cfg.n_layers)
  if not cfg.n_experts:
    writer.add_feed_forward_length(cfg.d_ff)
  writer.add_head_count(cfg.n_heads)
  writer.add_head_count_kv(cfg.n_kv_heads)
  writer.add_key_length(cfg.head_dim)
  writer.add_value_length(cfg.head_dim)
  if cfg.norm == "layer":
    writer.add_layer_norm_eps(cfg.norm_eps)
  else:
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
  if cfg.positions == "rope":
    writer.add_rope_freq_base(cfg.rope_base)
    writer.add_rope_dimension_count(cfg.rotary_dim)
  if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "linear":
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(cfg.rope_scaling.factor)
  if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "longrope":
    writer.add_rope_scaling_attn_factors(cfg.rope_scaling.attention)
    writer.add_rope_scaling_orig_ctx_len(cfg.rope_scaling.original_max_len)
  if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "yarn":
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(cfg.rope_scaling.factor)
    writer.add_rope_scaling_orig_ctx_len(cfg.rope_scaling.original_max_len)
    writer.add_rope_scaling_yarn_beta_fast(cfg.rope_scaling.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(cfg.rope_scaling.beta_slow)
  if cfg.window:
    writer.add_sliding_window(cfg.window)
  if cfg.attn_softcap:
    writer.add_attn_logit_softcapping(cfg.attn_softcap)
  if cfg.logit_softcap:
    writer.add_final_logit_softcapping(cfg.logit_softcap)


def write_more(writer, cfg, arch):
  """Keys of a few architectures."""
  # Command R multiplies logits by the key of that name, and Granite divides.
  if arch == "granite":
    writer.add_embedding_scale(cfg.embed_scale)
    writer.add_attention_scale(cfg.attn_scale)
    writer.add_residual_scale(cfg.residual_scale)
    writer.add_logit_scale(1 / cfg.logit_scale)
  elif cfg.logit_scale != 1:
    writer.add_logit_scale(cfg.logit_scale)
  if arch in ("stablelm", "gptneox"):
    writer.add_parallel_residual(cfg.parallel_residual)
  if arch in ("exaone4", "cohere2", "olmo2") and cfg.window:
    writer.add_sliding_window_pattern(cfg.local_layers)
  if arch in ("mpt", "olmo") and cfg.qkv_clip:
    writer.add_clamp_kqv(cfg.qkv_clip)
  if arch == "mpt":
    writer.add_max_alibi_bias(8.0)


def without_xielu(writer, tensors, n_layers):
  """Other tensors; xIELU's numbers of all layers become keys."""
  found = {}
  for name, tensor in tensors.items():
    if ".act_fn." in name:
      layer, key = name.split(".")[2], name.split(".")[-1]
      found.setdefault(key, {})[int(layer)] = float(tensor.reshape(()))
  for key, values in found.items():
    add = getattr(writer, f"add_xielu_{key}")
    add([values[i] for i in range(n_layers)])
  return {name: x for name, x in tensors.items() if ".act_fn." not in name}


def write_experts(writer, cfg, arch):
  """Keys of models with experts."""
  writer.add_expert_count(cfg.n_experts)
  writer.add_expert_used_count(cfg.experts_per_token)
  if arch not in _EXPERT_LENGTH:
    writer.add_feed_forward_length(cfg.d_ff)
    return
  # There the common key is about layers without experts.
  writer.add_feed_forward_length(3 * cfg.d_ff)
  writer.add_expert_feed_forward_length(cfg.d_ff)
  if cfg.shared_d_ff:
    writer.add_expert_shared_feed_forward_length(cfg.shared_d_ff)


def add_value(writer, key, value):
  """A number, a bool or a text."""
  kinds = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
  }
  kinds[type(value)](key, value)


def write_vocabulary(writer, cfg):
  """A SentencePiece vocabulary of as many tokens as the model has rows."""
  tokens = [f"t{i}" for i in range(cfg.vocab_size)]
  writer.add_tokenizer_model("llama")
  writer.add_token_list(tokens)
  writer.add_token_scores([-float(i) for i in range(len(tokens))])
  writer.add_token_types([1] * len(tokens))
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
