"""State of the page besides its components: answers, choices, and clients of other processes."""
