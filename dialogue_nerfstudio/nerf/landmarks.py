"""Which of the 478 tracked face landmarks lie on the mouth and on the eyes (MediaPipe's face mesh topology)."""

MOUTH_LANDMARKS = [
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
]  # fmt: skip
"""The outer contour of the lips."""

EYE_LANDMARKS = [
    33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398,
]  # fmt: skip
"""The contours of both eyes."""
