"""What the user names: models, weights, calibration data.

Imports: ``removal``, ``channels`` and ``cli.errors``.
"""
