"""Weight files as untrusted bytes: checked headers, then float32 tensors.

GGUF (`gguf`, its header and its quantised types) and safetensors
(`safetensors_io`, its header); both stream through `tiles`. Nothing here knows
a model. Internal to `sinkjax.weights`.
"""
