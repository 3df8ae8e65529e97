"""Elements of a density whose data are equal are computed once.

`value.py` holds arrays by classes of equal elements, `rules.py` says what each primitive does to them, `density.py`
evaluates a function of parameters so.
"""
