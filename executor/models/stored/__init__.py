"""Models that specbranch keeps in its cache folder: fetched ones, and GGUF files that were dequantised."""
