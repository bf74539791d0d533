"""What a model is asked: synthetic contexts, questions in English, and text."""
