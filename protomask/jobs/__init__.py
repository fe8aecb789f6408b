"""Long runs: cut into shards, stored as they come, continued after whatever ended them."""
