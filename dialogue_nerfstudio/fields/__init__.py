"""Fields: what stands at a point of head or person space, given a frame's signals. torch only; they know no files."""
