"""What is diagnosed, and what it is asked: haystacks of questions, the same in English, and rows of text."""
