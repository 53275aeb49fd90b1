"""Drafts distilled from one given target on its own answers: few of its blocks, and a head over its most frequent tokens."""
