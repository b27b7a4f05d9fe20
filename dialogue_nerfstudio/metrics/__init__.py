"""Measures of pictures, tracking, diarization and lips, each with the protocol it follows in its docstring."""
