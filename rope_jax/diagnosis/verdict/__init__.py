"""From what was measured to what to do: contrasts, ranking, cause, and how sure all of it is."""
