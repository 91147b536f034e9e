"""--accelerator, as every launcher has it that plans for devices elsewhere."""

from absl import flags

ACCELERATOR = flags.DEFINE_string(
  "accelerator",
  None,
  "With --dry_run: plan for these devices, which need not be here, as in "
  "8xh100, 4xa100-40, 16xv5e, v5e:4x4 or v5p:4x4x4.",
)


def check(dry_run: bool, offload: bool) -> None:
  """Refuses --accelerator where nothing is planned, or for one layer at a time.

  Raises:
    ValueError: naming the flag.
  """
  if ACCELERATOR.value and offload:
    raise ValueError(
      "--offload works on the device that is here: leave out --accelerator"
    )
  if ACCELERATOR.value and not dry_run:
    raise ValueError(
      f"--accelerator={ACCELERATOR.value} is for a plan: add --dry_run, or "
      "leave it out to use the devices that are here"
    )
