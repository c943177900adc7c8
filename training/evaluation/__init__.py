"""Judging policies on bars whose best policy nobody knows: walk-forward folds, rivals, intervals, leak controls.

`study` is the whole of it, in order; `settings` what can be chosen; every other module is one step.
"""
