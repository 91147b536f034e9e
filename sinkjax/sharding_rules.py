"""Which axes of the mesh split a parameter, by the end of its path."""

EXPERT = "expert"
"""Of a mesh that splits experts, the last, so that others are as they were."""

RULES: dict[tuple[str, ...], tuple[str | None, ...]] = {
  ("embed",): ("tensor", "fsdp"),
  ("unembed",): ("fsdp", "tensor"),
  ("unembed_bias",): ("tensor",),
  ("attn", "q", "kernel"): (None, "fsdp", "tensor", None),
  ("attn", "k", "kernel"): (None, "fsdp", "tensor", None),
  ("attn", "v", "kernel"): (None, "fsdp", "tensor", None),
  ("attn", "q", "bias"): (None, "tensor", None),
  ("attn", "k", "bias"): (None, "tensor", None),
  ("attn", "v", "bias"): (None, "tensor", None),
  # Latent vectors are narrow, and every head reads all of them.
  ("q_latent", "down", "kernel"): (None, "fsdp", None),
  ("kv_latent", "down", "kernel"): (None, "fsdp", None),
  ("attn", "k_rope", "kernel"): (None, "fsdp", None, None),
  ("attn", "sinks"): (None, "tensor"),
  ("attn", "k_bias"): (None, "tensor", None),
  ("attn", "v_bias"): (None, "tensor", None),
  ("attn", "gate", "kernel"): (None, "fsdp", "tensor", None),
  ("attn", "mix_rate"): (None, "tensor"),
  ("attn", "mix_rate", "kernel"): (None, "fsdp", "tensor"),
  ("attn", "mix_rate", "bias"): (None, "tensor"),
  ("attn", "o", "kernel"): (None, "tensor", None, "fsdp"),
  # One number a token each.
  ("depth", "halt", "kernel"): (None, "fsdp", None),
  ("depth", "router", "kernel"): (None, "fsdp", None),
  ("depth", "predictor", "kernel"): (None, "fsdp", None),
  ("mlp", "gate", "kernel"): (None, "fsdp", "tensor"),
  ("mlp", "up", "kernel"): (None, "fsdp", "tensor"),
  ("mlp", "gate", "bias"): (None, "tensor"),
  ("mlp", "up", "bias"): (None, "tensor"),
  ("mlp", "down", "kernel"): (None, "tensor", "fsdp"),
  # Each expert is split as an MLP is.
  ("expert_gate", "kernel"): (None, EXPERT, "fsdp", "tensor"),
  ("expert_up", "kernel"): (None, EXPERT, "fsdp", "tensor"),
  ("expert_gate", "bias"): (None, EXPERT, "tensor"),
  ("expert_up", "bias"): (None, EXPERT, "tensor"),
  ("expert_down", "kernel"): (None, EXPERT, "tensor", "fsdp"),
  ("expert_down", "bias"): (None, EXPERT),
  ("shared_gate", "kernel"): (None, "fsdp", "tensor"),
  ("shared_up", "kernel"): (None, "fsdp", "tensor"),
  ("shared_down", "kernel"): (None, "tensor", "fsdp"),
}
"""Axes of the mesh by the end of a parameter's path; others are copied.
The first axis of what is in a block is the layer."""
