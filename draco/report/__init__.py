"""The report: what happened in one run, or in several side by side, from what they left in their directories.

summary.py reads a run and counts, tables.py shows the numbers on a terminal or as Markdown. series.py makes arrays of
the events, figures.py draws them. overview.py and section.py choose what the page says of all runs and of one run;
page.py renders templates/ with it and writes the page.
"""

from draco.report.summary import Left, Summary, read, read_summary, summarise
from draco.report.tables import markdown, table

__all__ = ["Left", "Summary", "markdown", "read", "read_summary", "summarise", "table"]
