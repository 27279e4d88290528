"""The default kit: fetches it from pip and apt, turns it into models and shards; knows no adapter and no training."""
