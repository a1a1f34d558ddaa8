"""A board that is reached with the system's own ssh."""
