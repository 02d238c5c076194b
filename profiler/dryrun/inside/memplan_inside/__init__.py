"""What runs inside the observed program: the standard library and torch alone, on any Python that torch runs
on.
"""
