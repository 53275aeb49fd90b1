"""Models by name: where they come from, and the engines that run them."""
