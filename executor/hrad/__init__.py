"""H-RAD (METHOD 2.7): the target's hidden states predict whether none, some or all of a draft will be accepted."""
