"""What a fine-tuning does inside its container."""
