"""Reports: result files → rows → a table model, in several views → Markdown, CSV, JSON, LaTeX, HTML, the terminal,
plots; one writer a file."""
