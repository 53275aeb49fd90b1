"""One self-contained HTML file about runs: the verdict first, and everything that stands behind it."""
