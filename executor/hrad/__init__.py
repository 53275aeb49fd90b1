"""H-RAD (arXiv:2506.01979): the target's hidden states predict whether none, some or all of a draft will be accepted."""
