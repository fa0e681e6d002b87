"""What a user declares: frozen, checked when made, without modal and without torch."""
