"""Each method at its best on one pair: what settings follow from, the families and their axes, the search, and `auto`."""
