"""What needs a GPU: weights onto it, packed encoding, servers beside peers, fine-tuning."""
