"""A research question as a command: which members to train, and what their rows say.

In come flags; out go a results folder, a table, a picture and a sentence. `question` is what a question of sweeps/ is
made from, `statistics` what its verdict is decided by.
"""
