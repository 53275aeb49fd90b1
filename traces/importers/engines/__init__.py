"""What serving engines and their benchmarks print: a file a format. `catalog` tells which one a file is."""
