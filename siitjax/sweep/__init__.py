"""Many training runs: members in lanes and processes, saved as they go, and rows in a folder that explains itself.

In come members (see `engine`); out go one row a member, its weights and its curves (see `results`), whatever is killed
meanwhile. `placement` decides where members run, `processes` keeps a worker on each core, `hosts` joins machines.
"""
