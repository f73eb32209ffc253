"""From the files of a run to its report: reads what a run directory tells, and writes the page that `report/` makes of it."""
