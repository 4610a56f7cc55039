"""Reports: result files → a table model (`table`) → Markdown, CSV, the terminal, a plot; one writer a file."""
