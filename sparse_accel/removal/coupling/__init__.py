"""Which parameters go with each unit of a model.

Imports: the rest of removal.
"""
