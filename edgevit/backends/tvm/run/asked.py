"""What a model's library may ask a system for: functions that take no memory and open no file."""

from __future__ import annotations

PLAIN = frozenset({"memcpy", "memmove", "memset", "memcmp", "_GLOBAL_OFFSET_TABLE_"})
MATH = frozenset(
    f"{name}{kind}" for name in ("exp", "erf", "tanh", "sqrt", "floor", "fma", "pow") for kind in ("", "f")
)
# Where kernels are shared out among threads that the caller asks for: their stacks are the system's.
POOLED = frozenset(
    {"__tls_get_addr", "sched_yield", "pthread_create", "pthread_join"}
    | {f"pthread_mutex_{verb}" for verb in ("init", "destroy", "lock", "unlock")}
    | {f"pthread_cond_{verb}" for verb in ("init", "destroy", "wait", "broadcast")}
)
