"""The folders that commands write and open again.

Imports: ``cli.sources``, ``removal``, ``prune`` and ``report``.
"""
