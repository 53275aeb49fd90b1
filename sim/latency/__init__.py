"""How long each operation takes: constant, fitted, from a data sheet, and where the models run."""
