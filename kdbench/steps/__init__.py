"""Steps of the ladder: artifacts in, one artifact out; one plain function a file."""
