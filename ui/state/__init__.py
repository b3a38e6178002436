"""What the page keeps and knows besides its components: answers, choices, and the processes it talks to."""
