"""A diagnosis as a record, as text, as pictures and as one page."""
