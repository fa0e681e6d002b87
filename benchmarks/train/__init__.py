"""A `FineTuneJob` beside the bare `SFTTrainer` with its own checkpoints."""
