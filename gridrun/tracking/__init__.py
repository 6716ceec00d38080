"""What watches training: progress, and later trackers."""
