"""Prompt sets that people report, as they report them: pictures in the layouts that their own programs read, and tables.

`SUITES` (`suites.table`) has a row for each.  docs/benchmarks.md has the commands.
"""
