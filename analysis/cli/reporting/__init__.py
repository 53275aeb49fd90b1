"""Commands that show what runs hold."""
