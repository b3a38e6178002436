"""Speed and quality, measured beside other trainers; run by hand, not by tests."""
