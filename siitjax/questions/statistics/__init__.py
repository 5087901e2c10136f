"""What verdicts are decided by: intervals whose coverage is measured (tests/coverage.py).

In come rows of two settings; out go differences seed by seed. `ranks` is the signed-rank interval, `speed` compares
epochs to converge, which are censored, and `paired` metrics.
"""
