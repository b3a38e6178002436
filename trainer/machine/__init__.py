"""This machine, without torch: its cards, their memory, and the time that a step takes."""
