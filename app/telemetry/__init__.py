"""What the process tells about itself: metrics and logs."""
