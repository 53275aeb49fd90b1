"""Where the rounds of running requests come from: run lengths, plans made ahead, or a step machine each."""
