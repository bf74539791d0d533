"""What a retrofit does to a model: predicted from its config, and measured on its weights."""
