"""Reports: tables, plots, the HTML page."""
