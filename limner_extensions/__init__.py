"""Extensions that come with Limner. Each folder can be removed, and everything else still works."""
