"""Kinds of widths that are pruned in a way of their own. Imports: select, the rest of structured but the pruner and
its stages, calibration, channels."""
