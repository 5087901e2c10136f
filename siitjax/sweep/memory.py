"""A device's memory: how much it is, what tells that it ran out, and what the user is told where nothing helps."""

from typing import Any

from siitjax.causal.case import Case


def limit_of(device: Any) -> int:
    """Bytes that the device lends to programs; 0 where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def ran_out(error: RuntimeError) -> bool:
    """Whether a call or a compilation failed since the device's memory was full."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def too_large(case: Case) -> MemoryError:
    """The error where not even a lane a device fits."""
    return MemoryError(f"the device's memory does not hold one lane of {case.name}; lower --batch_size, or --samples")
