"""--distributed, --coordinator, --processes, --process: several processes."""

from absl import flags

from launch import train_processes

DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Find the other processes through the environment."
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, without --distributed."
)
PROCESSES = flags.DEFINE_integer(
  "processes", None, "How many processes work together."
)
PROCESS = flags.DEFINE_integer(
  "process", None, "The number of this process, from 0."
)


def asked() -> bool:
  """Whether any of these flags is given."""
  by_hand = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
  return DISTRIBUTED.value or by_hand != (None,) * 3


def join() -> bool:
  """Connects to the other processes; whether this is the one that writes.

  Raises:
    ValueError: as `train_processes.join`.
  """
  return train_processes.join(
    DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value
  )
