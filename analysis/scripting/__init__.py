"""One import for scripts: the folder `specbranch` in here is the package of that name (pyproject maps it)."""
