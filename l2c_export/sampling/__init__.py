"""Many images offline, in shards that are whole or absent; and pictures beside each other."""
