"""A map over a corpus that loses nothing and commits each item once: sources, plan, trials, ledger, shards, driver."""
