"""Memory bounds over every gate path, per runtime, and the runs that check them."""
