"""What a build proves and says: its checks before slow work, prediction, verifiers and manifest."""
