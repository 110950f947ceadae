"""Questions with known answers: reading them, marking what a model said, and how sure the marks are."""
