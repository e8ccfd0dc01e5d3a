"""What is typed: one file per group of commands.

Imports: ``cli.results``, ``cli.sources`` and every room of the package.
"""
