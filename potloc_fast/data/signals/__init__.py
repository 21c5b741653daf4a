"""Raw recordings: samples as sensors, microphones and trackers of poses leave them, made into snippets."""
