"""What leaves the project: laid-out frames, sound, and the statement of where they came from."""
