"""Further tasks that differ in kind: counters, look-ups, orders, brackets, sums. A task a file."""
