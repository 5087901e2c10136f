"""Processes that train a sweep's members, a core each, and what a signal does to them.

In come members that wait, and where they were saved; out go rows. `launch` starts it, `pool` keeps the workers, and
`worker` is what each of them runs.
"""
