"""Pictures of what was found: overlays (numpy, OpenCV), figures (matplotlib) and one self-contained HTML report."""
