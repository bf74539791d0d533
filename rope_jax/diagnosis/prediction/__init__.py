"""What short contexts and a model's own heads say about long ones, beside the measurement."""
