"""What an experiment claims: expressions over its results, read, checked, evaluated and judged.

Nothing here knows where results are kept: data come in as Datasets, by node (see ``judging.py``).
"""
